package netsetup

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
)

// ErrHeld says that a network is held up already, in the same way.
var ErrHeld = errors.New("it is up already")

// Hold keeps a network up without a VM on it, for as long as the process that
// has it lives, and sees to it that there is a keeper. Its methods may be called
// from several goroutines.
type Hold struct {
	host Host
	dir  string
	lock *os.File // says that this holder lives

	mu       sync.Mutex
	request  holdRequest
	conn     *net.UnixConn
	draining chan []string // VMs that it goes with, told once

	ended   chan struct{} // closed when it is over
	err     error         // why, then
	settled bool          // there is no network of ours to wait for, then
}

// errHoldEnded says that the network was taken down, or is another's to hold,
// since the keeper died.
var errHoldEnded = errors.New("the hold was ended")

// StartHold holds a network, bringing it up if nobody has, and opens it to a
// group if one is given. ErrHeld says that another process does so already, a
// *ConflictError what stands in the way.
func StartHold(ctx context.Context, h Host, spec Spec, group *Group) (*Hold, error) {
	d := &Hold{host: h, dir: filepath.Join(netsFolder(h.Runtime), spec.folder()),
		request:  holdRequest{ID: rand.Text(), Net: spec, Group: group},
		draining: make(chan []string, 1), ended: make(chan struct{})}
	if err := d.start(ctx); err != nil {
		return nil, fmt.Errorf("hold network %s: %w", spec.Name, err)
	}
	go d.watch()
	return d, nil
}

func (d *Hold) start(ctx context.Context) (err error) {
	if err := os.MkdirAll(d.dir, 0o711); err != nil {
		return err
	}
	if d.lock, err = lockHold(d.dir); err != nil {
		return err
	}
	if d.conn, err = d.ask(ctx); err != nil {
		return errors.Join(err, d.lock.Close())
	}
	return nil
}

// ask asks for the hold until a keeper has answered.
func (d *Hold) ask(ctx context.Context) (*net.UnixConn, error) {
	var last error
	for failed := 0; failed < attempts; pauseAfter(ctx, failed) {
		if ended, err := d.wasEnded(); ended || err != nil {
			return nil, cmp.Or(err, errHoldEnded)
		}
		conn, err := connect(ctx, d.host, d.dir)
		if nobodyListens(err) {
			last = err // the keeper that was just started has ended
			failed++
			continue
		}
		if err != nil {
			return nil, err
		}
		answer, err := d.askOnce(ctx, conn)
		switch {
		case ctx.Err() != nil:
			conn.Close()
			return nil, context.Cause(ctx)
		case err == nil && answer.Held != nil && !answer.Held.Already:
			if err := d.open(); err != nil {
				conn.Close()
				return nil, err
			}
			d.request.Again = true
			return conn, nil
		}
		conn.Close()
		switch {
		case err == nil && answer.Down != nil && answer.Down.Errors != "":
			return nil, errors.New(answer.Down.Errors)
		case err == nil && answer.Down != nil:
			return nil, errHoldEnded
		case err == nil && answer.Held != nil:
			return nil, ErrHeld
		case err == nil && answer.Refused != nil:
			return nil, answer.Refused.err()
		case err == nil && answer.Closing:
			if err := awaitGone(ctx, d.dir); err != nil {
				return nil, err
			}
			continue
		}
		last = err
		failed++
	}
	return nil, noKeeper(d.dir, last)
}

// wasEnded tells whether a hold that was granted before is over, without a
// keeper, which a network that is down has none of.
func (d *Hold) wasEnded() (bool, error) {
	if !d.request.Again {
		return false, nil
	}
	m, err := loadHold(d.dir)
	return m == nil || m.ID != d.request.ID, err
}

func (d *Hold) askOnce(ctx context.Context, conn *net.UnixConn) (reply, error) {
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	d.mu.Lock()
	r := d.request
	d.mu.Unlock()
	in, err := here()
	if err != nil {
		return reply{}, err
	}
	if err := send(conn, request{Protocol: protocolVersion, Hold: &r, In: &in}, nil); err != nil {
		return reply{}, err
	}
	return receiveAnswer(conn)
}

// open lets the group reach the socket: the keeper has no right to.
func (d *Hold) open() error {
	if d.request.Group == nil {
		return nil
	}
	for _, dir := range []string{d.host.Runtime, netsFolder(d.host.Runtime), d.dir} {
		fi, err := os.Stat(dir)
		if err == nil && fi.Mode().Perm()&0o011 != 0o011 { // a strict umask's
			err = os.Chmod(dir, fi.Mode().Perm()|0o011)
		}
		if err != nil {
			return fmt.Errorf("open network to %s: %w", d.request.Group.describe(), err)
		}
	}
	err := inFolder(d.dir, socketName, func(path string) error { return openSocket(path, d.request.Group) })
	if err != nil {
		return fmt.Errorf("open network to %s: %w", d.request.Group.describe(), err)
	}
	return nil
}

// watch holds on: when the keeper dies, it starts the next one.
func (d *Hold) watch() {
	defer close(d.ended)
	defer d.lock.Close()
	conn := d.conn
	for {
		answer, err := receiveAnswer(conn)
		switch {
		case err == nil && answer.Down != nil && len(answer.Down.Members) > 0:
			d.drain(answer.Down.Members)
			continue
		case err == nil && answer.Down != nil:
			conn.Close()
			d.settled = answer.Down.Replaced
			if answer.Down.Errors != "" {
				d.err = errors.New(answer.Down.Errors)
			}
			return
		case err == nil:
			continue
		}
		conn.Close()
		if conn, d.err = d.again(); conn == nil {
			return
		}
	}
}

func (d *Hold) drain(vms []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.request.Draining = true
	select {
	case d.draining <- vms:
	default:
	}
}

// again finds the keeper that replaces a dead one, or starts it; nil where the
// hold was ended meanwhile.
func (d *Hold) again() (*net.UnixConn, error) {
	log := d.host.log().With("network", d.request.Net.Name)
	log.Warn("the network's keeper died, another one takes over")
	conn, err := d.ask(context.Background())
	if errors.Is(err, errHoldEnded) {
		log.Info("the network was taken down meanwhile")
		d.settled = true
		return nil, nil
	}
	if err != nil {
		log.Error("lost the network", "cause", err)
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conn = conn
	return conn, nil
}

// Draining gives the names of the VMs that the network was told to go down
// with.
func (d *Hold) Draining() <-chan []string { return d.draining }

// Release lets the network go down: at once, or with the last VM on it. Wait
// tells when.
func (d *Hold) Release() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.request.Draining = true
	send(d.conn, request{Protocol: protocolVersion, Detach: true}, nil) // if the keeper is dead by now, the next one hears it
}

// Done is closed when the hold is over.
func (d *Hold) Done() <-chan struct{} { return d.ended }

// Wait returns when the hold is over, with all that could not be undone, or why
// it was lost.
func (d *Hold) Wait() error {
	<-d.ended
	if d.err == nil && !d.settled {
		return awaitGone(context.Background(), d.dir)
	}
	return d.err
}
