package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"github.com/vmrun/vmrun/qmp"
)

// process is a QEMU with our ends of its sockets.
type process struct {
	cmd     *exec.Cmd
	accel   string
	client  *qmp.Client
	console *net.UnixConn
	ports   map[string]*net.UnixConn // by their descriptors' names
	ended   chan struct{}            // closed when QEMU is gone
	err     error                    // of its end; after ended
}

// command is QEMU as a process that dies with this one: in a session of its
// own, so that a terminal's signals don't reach it, with nothing of our
// environment and no files but those that are meant for it.
func (l *launch) command(args []string, in *inheritance) *exec.Cmd {
	cmd := exec.Command(l.host.QEMU, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "LC_ALL=C"}
	// By way of a pipe: whatever QEMU writes, its log does not fill the host.
	cmd.Stdout, cmd.Stderr = l.qemuLog, l.qemuLog
	cmd.WaitDelay = exitGrace
	cmd.ExtraFiles = in.files
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if u := l.plan.User; l.host.EUID == 0 && u.UID != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: u.UID, Gid: u.GID, Groups: u.Groups}
	}
	return cmd
}

// start starts the process. The parent-death signal follows the thread that
// forked, not the process: that thread must live as long as QEMU does.
func (p *process) start() error {
	if err := closeOnExec(); err != nil {
		return err
	}
	p.ended = make(chan struct{})
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
			close(p.ended)
		}
	}()
	return <-started
}

// kill ends QEMU at once.
func (p *process) kill() error {
	err := p.cmd.Process.Kill()
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// close kills QEMU if it still runs, waits until it is gone, and closes our
// ends of its sockets.
func (p *process) close() error {
	err := p.kill()
	<-p.ended
	if p.client != nil {
		err = errors.Join(err, p.client.Close())
	}
	return errors.Join(err, p.closeSockets())
}

func (p *process) closeSockets() error {
	err := p.console.Close()
	for _, port := range p.ports {
		err = errors.Join(err, port.Close())
	}
	return err
}

// exitGrace is how long a QEMU that has closed its monitor may take to end.
const exitGrace = time.Second

// connect waits for QEMU's greeting. If there is none, QEMU is gone afterwards
// and died tells whether it ended by itself.
func (p *process) connect(ctx context.Context, monitor *net.UnixConn) (died bool, err error) {
	p.client, err = qmp.NewClient(ctx, monitor)
	if err == nil {
		return false, nil
	}
	if errors.Is(err, qmp.ErrClosed) {
		select {
		case <-p.ended:
			died = true
		case <-time.After(exitGrace):
		case <-ctx.Done():
		}
	}
	if ctx.Err() != nil {
		died, err = false, context.Cause(ctx)
	}
	return died, errors.Join(err, p.close())
}

// StartError says that QEMU did not start, or ended before it answered.
type StartError struct {
	Err  error
	Log  string // the end of what QEMU wrote to its standard error
	died bool   // QEMU ended by itself
}

func (e *StartError) Error() string {
	if e.Log == "" {
		return fmt.Sprintf("start QEMU: %v", e.Err)
	}
	return fmt.Sprintf("start QEMU: %v: %s", e.Err, e.Log)
}

func (e *StartError) Unwrap() error { return e.Err }
