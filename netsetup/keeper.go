package netsetup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// keeper owns one network: its bridge, rules and services, for as long as the
// network has members.
type keeper struct {
	host  Host
	dir   string
	log   *slog.Logger
	names names
	w     *effects

	stop func() // ends serve, once everything is undone

	mu       sync.Mutex // guards what follows
	journal  *journal
	phase    phase
	network  Resolved
	ports    map[string]*holding // by the member's id
	services *services
	result   detachResult // of the teardown
}

type phase int

const (
	fresh   phase = iota // nobody has asked for anything yet
	up                   // members come and go
	closing              // the last one has left
)

// holding is a port and the connection that is its membership; conn is nil
// while a port of a dead keeper waits for its member.
type holding struct {
	portRecord
	seq  int // of its journal entry
	conn *net.UnixConn
}

// Keep is the body of the keeper process: it serves the listening socket that
// startKeeper passed on until the last member has left and everything is
// undone. It is called once, by the hidden command `vmrun keeper`; network is
// the network's folder below the runtime folder.
func Keep(ctx context.Context, h Host, network string) error {
	unix.Umask(0o077)
	listener, err := inherited()
	if err != nil {
		return err
	}
	defer listener.Close()
	dir := filepath.Join(netsFolder(h.Runtime), network)
	lock, err := lockForLife(filepath.Join(dir, "lock"))
	if err != nil {
		return err
	}
	real, err := newHost(lock)
	if err != nil {
		return err
	}
	defer real.close()
	k, err := newKeeper(h, dir, real)
	if err != nil {
		return err
	}
	go k.logSignals(ctx)
	return k.serve(ctx, listener)
}

// lockForLife takes a lock that only the end of the process gives back: whoever
// waits for it finds nothing of this keeper. The duplicate is a bare number that
// no finalizer closes.
func lockForLife(path string) (*os.File, error) {
	f, err := lockFile(path, unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return nil, errors.Join(fmt.Errorf("keep lock %s: %w", path, err), f.Close())
	}
	return f, nil
}

func newKeeper(h Host, dir string, real kernel) (*keeper, error) {
	claims, err := newClaims(h.Runtime)
	if err != nil {
		return nil, err
	}
	j, err := openJournal(dir, h.log())
	if err != nil {
		return nil, err
	}
	return &keeper{host: h, dir: dir, log: h.log(), journal: j, w: &effects{kernel: real, claims: claims},
		ports: map[string]*holding{}}, nil
}

// logSignals ignores what would end other programs: a network ends with its
// last member and never before.
func (k *keeper) logSignals(ctx context.Context) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(signals)
	for {
		select {
		case s := <-signals:
			k.mu.Lock()
			k.log.Warn("ignored a signal: the network has members", "signal", s.String(), "members", len(k.ports))
			k.mu.Unlock()
		case <-ctx.Done():
			return
		}
	}
}

// serve answers members until the network has ended.
func (k *keeper) serve(ctx context.Context, listener *net.UnixListener) error {
	ctx, k.stop = context.WithCancel(ctx)
	defer k.stop()
	if err := k.adopt(ctx); err != nil {
		return err
	}
	idle := time.AfterFunc(firstMemberTimeout, k.endIfUnused)
	defer idle.Stop()
	stopped := context.AfterFunc(ctx, func() { k.stopListening(listener) })
	defer stopped()
	var members sync.WaitGroup
	for {
		conn, err := listener.AcceptUnix()
		if err != nil {
			break
		}
		members.Go(func() { k.member(ctx, conn) })
	}
	members.Wait()
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.journal.close()
}

// stopListening removes the socket while it still listens: as long as it does,
// no other keeper's takes its place, so the name is ours.
func (k *keeper) stopListening(listener *net.UnixListener) {
	if err := removeIfThere(filepath.Join(k.dir, socketName)); err != nil {
		k.log.Warn("remove socket", "cause", err)
	}
	listener.Close()
}

// endIfUnused ends a keeper whose first member never asked for anything.
func (k *keeper) endIfUnused() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.phase == fresh {
		k.endWithoutMembers()
	}
}

// member serves one connection: a request for a port, then its end.
func (k *keeper) member(ctx context.Context, conn *net.UnixConn) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	var r request
	files, err := receive(conn, &r)
	closeAll(files)
	if err != nil {
		k.endIfUnused()
		return
	}
	id := k.answer(conn, r)
	if id == "" {
		return
	}
	polite := k.awaitDetach(conn)
	k.leave(id, conn, polite)
}

// awaitDetach waits for the end of a membership: said, or by the connection's
// end.
func (k *keeper) awaitDetach(conn *net.UnixConn) (polite bool) {
	for {
		var r request
		files, err := receive(conn, &r)
		closeAll(files)
		if err != nil {
			return false
		}
		if r.Detach {
			return true
		}
	}
}

// answer serves a member's first request and returns the id of its port, or ""
// where it got none.
func (k *keeper) answer(conn *net.UnixConn, r request) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	answer, files := k.decide(conn, r)
	answer.Protocol = protocolVersion
	err := send(conn, answer, files)
	err = errors.Join(err, closeAll(files))
	if answer.Attached == nil {
		k.endWithoutMembers()
		return ""
	}
	if err != nil {
		k.log.Warn("lost a member while it attached", "vm", r.Attach.Port.VM, "cause", err)
	}
	return r.Attach.ID
}

func (k *keeper) decide(conn *net.UnixConn, r request) (reply, []*os.File) {
	switch {
	case r.Protocol != protocolVersion:
		return reply{Refused: &refusal{Text: fmt.Sprintf("the network's keeper is of another version of vmrun (its protocol %d, yours %d)",
			protocolVersion, r.Protocol)}}, nil
	case r.Attach == nil:
		return reply{Refused: &refusal{Text: "the first request has to attach"}}, nil
	case !trusted(peerUID(conn)):
		return reply{Refused: &refusal{Text: "the network belongs to another user"}}, nil
	case k.phase == closing:
		return reply{Closing: true}, nil
	}
	if r.Attach.Resume {
		return k.resumePort(conn, *r.Attach), nil
	}
	info, files, err := k.attach(conn, *r.Attach)
	if err != nil {
		k.log.Warn("refused a member", "vm", r.Attach.Port.VM, "cause", err)
		return reply{Refused: newRefusal(err)}, nil
	}
	return reply{Attached: info}, files
}

// attach gives a member its port, bringing the network up for the first one.
func (k *keeper) attach(conn *net.UnixConn, r attachRequest) (*attachment, []*os.File, error) {
	if k.phase == fresh {
		if err := k.bringUp(r.Net); err != nil {
			return nil, nil, err
		}
	}
	if d := k.network.Spec.Difference(r.Net); d != "" {
		return nil, nil, conflict("network", "%s is running with another definition: %s", r.Net.Name, d)
	}
	if h := k.ports[r.ID]; h != nil {
		k.forget(h)
	}
	return k.newPort(conn, r)
}

// leave ends a membership. The last one ends the network.
func (k *keeper) leave(id string, conn *net.UnixConn, polite bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	h := k.ports[id]
	if h == nil || h.conn != conn {
		return // another connection of the same member has taken over
	}
	k.log.Info("member leaves", "vm", h.Spec.VM, "link", h.Link, "polite", polite)
	result := k.removePort(h)
	if polite {
		send(conn, reply{Protocol: protocolVersion, Detached: &result}, nil)
	}
	if result.Last {
		k.stop()
	}
}

// removePort takes a port away; with the last one goes the network.
func (k *keeper) removePort(h *holding) detachResult {
	delete(k.ports, h.ID)
	if len(k.ports) == 0 {
		return k.teardown()
	}
	k.services.release(h.Spec.MAC)
	var result detachResult
	if err := k.journal.undoEntry(k.w, h.seq); err != nil {
		k.log.Error("undo", "cause", err)
		result.Errors = err.Error()
	}
	return result
}

// endWithoutMembers ends a keeper that nobody has a port of.
func (k *keeper) endWithoutMembers() {
	if len(k.ports) > 0 {
		return
	}
	if k.phase != closing {
		k.teardown()
	}
	k.stop()
}
