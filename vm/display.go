package vm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"

	"github.com/vmrun/vmrun/qmp"
	"github.com/vmrun/vmrun/vm/qemu"
	"github.com/vmrun/vmrun/vm/wire"
)

// displaySocket is where viewers of a screen connect, in the machine's folder.
const displaySocket = "display.sock"

// Display is how a machine's screen is reached.
type Display struct {
	Kind     string `json:"kind"`     // vnc or spice
	Socket   string `json:"socket"`   // path of a unix socket, which only its owner can connect to
	Password string `json:"password"` // new with each launch
}

// ErrNoDisplay says that a machine has no screen.
var ErrNoDisplay = errors.New("the machine has no screen (machine.display)")

// display lets viewers in. QEMU itself listens to nothing: its user needs no way
// to the socket, and nobody gets past the password.
type display struct {
	Display
	client   *qmp.Client
	log      *slog.Logger
	listener *net.UnixListener
	path     string
	serving  sync.WaitGroup
	stop     context.CancelFunc
}

// openDisplay sets the screen's password and lets viewers in.
func (l *launch) openDisplay(ctx context.Context) error {
	if l.plan.Display == "" {
		return nil
	}
	d := &display{client: l.process.client, log: l.host.log(), path: filepath.Join(l.dir, displaySocket)}
	d.Kind, d.Socket, d.Password = l.plan.Display, d.path, newPassword(l.plan.Display)
	set := map[string]string{"protocol": d.Kind, "password": d.Password}
	if err := d.client.Run(ctx, "set_password", set, nil); err != nil {
		return fmt.Errorf("open display: %w", err)
	}
	listener, err := wire.ListenStream(l.dir, displaySocket)
	if err != nil {
		return fmt.Errorf("open display: %w", err)
	}
	d.listener = listener
	serving, stop := context.WithCancel(context.Background())
	d.stop = stop
	d.serving.Go(func() { d.serve(serving) })
	l.instance.display = d
	l.undo.push(d.close)
	return nil
}

// vncPasswordLen is all that VNC's authentication takes of a password, in bytes
// (RFC 6143, section 7.2.2).
const vncPasswordLen = 8

func newPassword(kind string) string {
	password := rand.Text()
	if kind == qemu.VNC {
		return password[:vncPasswordLen]
	}
	return password
}

// serve hands viewers to QEMU until the socket is closed. One after the other:
// QEMU keeps one received file at a time.
func (d *display) serve(ctx context.Context) {
	for n := 0; ; n++ {
		conn, err := d.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			err = d.admit(ctx, conn, fmt.Sprintf("viewer%d", n))
		}
		if err != nil && ctx.Err() == nil {
			d.log.Warn("let a viewer in", "cause", err)
		}
	}
}

// admit gives a viewer's connection to QEMU, which closes it.
func (d *display) admit(ctx context.Context, conn *net.UnixConn, name string) error {
	defer conn.Close()
	file, err := conn.File()
	if err != nil {
		return err
	}
	defer file.Close()
	if err := d.client.RunWithFile(ctx, "getfd", map[string]string{"fdname": name}, nil, file); err != nil {
		return err
	}
	err = d.client.Run(ctx, "add_client", map[string]any{"protocol": d.Kind, "fdname": name, "skipauth": false}, nil)
	if err != nil {
		return errors.Join(err, d.client.Run(ctx, "closefd", map[string]string{"fdname": name}, nil))
	}
	return nil
}

func (d *display) close() error {
	err := errors.Join(removeIfThere(d.path), d.listener.Close())
	d.stop()
	d.serving.Wait()
	return err
}

// Display tells how the machine's screen is reached, or ErrNoDisplay.
func (i *Instance) Display() (Display, error) {
	if i.display == nil {
		return Display{}, ErrNoDisplay
	}
	return i.display.Display, nil
}
