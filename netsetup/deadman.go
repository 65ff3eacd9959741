package netsetup

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The dead-man process stands behind a keeper that has taken over an uplink which
// the host uses: should the keeper die, it puts the host back. It is started
// before the first change, is told all that there is to undo, and reads from a
// pipe whose other end only the keeper has: the kernel closes it however the
// keeper ends.

// Words of a keeper to its dead-man, a line each. The first line is its orders.
const (
	wordConfirmed = "confirmed" // the host's gateway answers
	wordNoted     = "noted"     // the journal has what there is to undo by now
	wordUndoing   = "undoing"   // it is going back
	wordDisarmed  = "disarmed"  // all is undone
)

// wordArmed is the dead-man's answer to its orders.
const wordArmed = "armed"

const (
	// confirmTimeout is how long a keeper may take to confirm. Each of its steps
	// is bounded by less; one that takes longer hangs.
	confirmTimeout = 30 * time.Second
	// adoptionTime is how long a network that is up waits for another keeper, which
	// the first of its members starts at once.
	adoptionTime = time.Second
)

// orders are what a dead-man has to know.
type orders struct {
	Version int           `json:"v"`
	Keeper  int           `json:"keeper"` // process id
	Bridge  string        `json:"bridge"`
	Undo    []undoEntry   `json:"undo"`    // oldest first, should the journal be gone
	Confirm time.Duration `json:"confirm"` // 0: the keeper has confirmed already
}

// deadman is a dead-man at work.
type deadman struct {
	host   Host
	dir    string
	orders orders
	keeper int  // pidfd
	up     bool // the bridge stands for the uplink, and serves the host
}

// Deadman is the body of the dead-man process: it waits for the end of the keeper
// that has started it and undoes what that has left, unless another keeper takes
// over. It is called once, by the hidden command `vmrun deadman`; in and out are
// the keeper's pipes, and network is the network's folder below the runtime
// folder.
func Deadman(ctx context.Context, h Host, network string, in io.Reader, out io.WriteCloser) error {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE)
	unix.Umask(0o077)
	return standBehind(ctx, h, network, in, out)
}

// standBehind takes a keeper's orders and waits for its end.
func standBehind(ctx context.Context, h Host, network string, in io.Reader, out io.WriteCloser) error {
	d := &deadman{host: h, dir: filepath.Join(netsFolder(h.Runtime), network), keeper: -1}
	lines := bufio.NewReader(in)
	text, err := lines.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("read orders (only a keeper starts a dead-man): %w", err)
	}
	if err := d.obey(text); err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, wordArmed)
	if err := errors.Join(err, out.Close()); err != nil {
		return fmt.Errorf("answer the keeper: %w", err)
	}
	return d.wait(ctx, lines)
}

func (d *deadman) obey(text []byte) error {
	if err := json.Unmarshal(text, &d.orders); err != nil {
		return fmt.Errorf("decode orders: %w", err)
	}
	if d.orders.Version != journalVersion {
		return fmt.Errorf("decode orders: version %d, ours is %d", d.orders.Version, journalVersion)
	}
	var err error
	d.up = d.orders.Confirm == 0
	if d.keeper, err = unix.PidfdOpen(d.orders.Keeper, 0); err != nil {
		return fmt.Errorf("watch keeper %d: %w", d.orders.Keeper, err)
	}
	return nil
}

// wait waits for the keeper's end or its word that it is not needed any more.
func (d *deadman) wait(ctx context.Context, lines *bufio.Reader) error {
	words := make(chan string)
	go func() {
		defer close(words)
		for {
			word, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			words <- word[:len(word)-1]
		}
	}()
	var late <-chan time.Time
	if d.orders.Confirm > 0 {
		late = time.After(d.orders.Confirm)
	}
	for {
		select {
		case word, ok := <-words:
			switch {
			case !ok:
				return d.keeperDied(ctx)
			case word == wordConfirmed:
				late, d.up = nil, true
			case word == wordNoted:
				d.reread()
			case word == wordUndoing:
				d.up = false
			case word == wordDisarmed:
				return nil
			}
		case <-late:
			d.host.log().Error("the keeper hangs, killing it", "pid", d.orders.Keeper)
			if err := unix.PidfdSendSignal(d.keeper, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill keeper %d: %w", d.orders.Keeper, err)
			}
			late = nil // its pipe is closed now
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// reread takes what the journal has for orders, unless that is gone or damaged. The
// word for it is short: the pipe has room for thousands, should nobody read them.
func (d *deadman) reread() {
	j, err := readJournal(d.dir, d.host.log())
	if err != nil {
		d.host.log().Warn("the orders stay as they were", "cause", err)
		return
	}
	if !j.damaged && j.lends() {
		d.orders.Undo = j.general()
	}
}

// keeperDied undoes everything. Where the network was up, its members and its
// holder start another keeper, which takes over with a dead-man of its own.
func (d *deadman) keeperDied(ctx context.Context) error {
	started := time.Now()
	// Its pipe is closed before its socket may be.
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(d.keeper), Events: unix.POLLIN}}, int(armTimeout.Milliseconds())); err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("wait for the keeper's end: %w", err)
	}
	log := d.host.log().With("network", filepath.Base(d.dir))
	if d.up {
		log.Warn("the keeper died, waiting for another one")
		select {
		case <-time.After(adoptionTime):
		case <-ctx.Done():
		}
	}
	if d.adopted() {
		log.Info("another keeper has taken over")
		return nil
	}
	lock, err := lockDead(ctx, d.dir)
	if err != nil || lock == nil {
		return err // nil: another keeper was just quicker
	}
	defer lock.Close()
	if err := d.undo(lock); err != nil {
		log.Error("undo", "cause", err)
		return err
	}
	log.Warn("the keeper died and nobody took over: the uplink was given back", "took", time.Since(started).String())
	return sweepSocket(d.dir)
}

// adopted tells whether another keeper has taken over: somebody listens, and goes
// on to for long enough to have a dead-man of its own. One that dies before that
// closes the connection.
func (d *deadman) adopted() bool {
	for {
		conn, err := dialKeeper(d.dir)
		if err != nil {
			return false
		}
		conn.SetReadDeadline(time.Now().Add(adoptionTime))
		_, err = conn.Read(make([]byte, 1))
		conn.Close()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return true
		}
	}
}

// undo undoes what the journal holds. Where that is gone or damaged, it is what the
// keeper's orders were.
func (d *deadman) undo(lock *os.File) error {
	real, err := newHost(lock)
	if err != nil {
		return err
	}
	defer real.close()
	claims, err := newClaims(d.host.Runtime)
	if err != nil {
		return err
	}
	w := &effects{kernel: real, claims: claims}
	j, err := openJournal(d.dir, d.host.log())
	if err != nil {
		return errors.Join(err, d.obeyOrders(w, false))
	}
	lost := j.damaged && d.up // by then it had all that the orders say
	if err = j.restore(d.host, w); err != nil || len(j.entries) == 0 || lost && !j.lends() {
		err = d.obeyOrders(w, lost)
		j.damaged = err != nil
	}
	return errors.Join(err, j.undoLast(w))
}

// obeyOrders undoes what the keeper's orders say. A bridge that is gone says that all
// of it is undone, unless that is known to be lost.
func (d *deadman) obeyOrders(w *effects, lost bool) error {
	links, err := w.kernel.Links()
	if err != nil {
		return err
	}
	if _, there := (Facts{Links: links}).link(d.orders.Bridge); !there && !lost {
		return nil
	}
	var errs []error
	for _, e := range slices.Backward(d.orders.Undo) {
		u, err := e.decode()
		if err == nil {
			err = u.do(w)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
