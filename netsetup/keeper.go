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
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/internal/fanout"
)

// keeper owns one network: its bridge, rules and services, for as long as the
// network has members.
type keeper struct {
	host  Host
	dir   string
	log   *slog.Logger
	names names
	w     *effects

	connections atomic.Int32 // open ones

	ending atomic.Bool // phase is closing, for who asks without the mutex
	stop   func()      // ends serve, once everything is undone

	followers fanout.Fanout[Event]

	visitors visitors  // users without root
	watching sync.Once // their TAPs

	mu       sync.Mutex // guards what follows
	busy     int        // requests that are being answered
	journal  *journal
	phase    phase
	network  Resolved
	since    time.Time           // when it came up
	ports    map[string]*holding // by the member's id
	held     *hold               // nil: nobody holds the network up
	adopted  *Group              // of a dead keeper's holder, until that is back
	leaving  removals
	services *services
	bridge   int          // index of the one that was made for it; 0: it is gone, or the host's
	broken   bool         // its bridge is gone, and that was told
	result   detachResult // of the teardown
	guardian *guardian    // nil: no uplink was taken over
}

// acceptPause is how long a keeper waits when it can't accept a connection.
const acceptPause = 100 * time.Millisecond

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
	pid  int32
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
	j.by = h.Version
	k := &keeper{host: h, dir: dir, log: h.log(), journal: j, w: &effects{kernel: real, claims: claims},
		followers: fanout.Fanout[Event]{Missed: missedEvents, Remembers: rememberedEvents}, ports: map[string]*holding{}}
	k.leaving.wake = sync.NewCond(&k.mu)
	return k, nil
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
		if errors.Is(err, net.ErrClosed) {
			break
		}
		if err != nil {
			k.log.Warn("accept a member", "cause", err)
			select { // out of descriptors, say: members that leave give some back
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
			continue
		}
		who := newPeer(conn)
		if !who.trusted() && !k.visitors.enter(who.uid) {
			conn.Close()
			continue
		}
		k.connections.Add(1)
		members.Go(func() {
			k.member(ctx, conn, who)
			if !who.trusted() {
				k.visitors.leave(who.uid)
			}
		})
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

// enter begins to answer somebody, under the mutex; exit ends it. A keeper whose
// network is gone stops when all are answered.
func (k *keeper) enter() {
	k.mu.Lock()
	k.busy++
}

func (k *keeper) exit() {
	k.busy--
	if k.phase == closing && k.busy == 0 {
		k.stop()
	}
	k.mu.Unlock()
}

// endIfUnused ends a keeper whose first member never asked for anything.
func (k *keeper) endIfUnused() {
	k.enter()
	defer k.exit()
	if k.phase == fresh {
		k.endIfIdle()
	}
}

// member serves one connection: a request, and where that makes it a member's
// or a holder's, its end.
func (k *keeper) member(ctx context.Context, conn *net.UnixConn, who peer) {
	defer func() {
		if k.connections.Add(-1) == 0 { // else somebody is there who may want something
			k.endIfUnused()
		}
	}()
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	var r request
	conn.SetReadDeadline(time.Now().Add(requestTimeout))
	files, err := receive(conn, &r)
	closeAll(files)
	if err != nil {
		return
	}
	conn.SetReadDeadline(time.Time{})
	if r.Follow {
		stop() // who follows hears the end too
		k.serveFollower(ctx, conn, who, r)
		return
	}
	switch answer := k.answer(conn, who, r); {
	case answer.Attached != nil:
		k.leave(r.Attach.ID, conn, k.awaitDetach(conn))
	case answer.Held != nil && !answer.Held.Already:
		if r.Hold.Group != nil {
			k.watchGuests(ctx)
		}
		k.awaitHoldersEnd(conn)
	}
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

// awaitHoldersEnd waits until the holder is gone, which may stay for a while
// after it has asked for its end.
func (k *keeper) awaitHoldersEnd(conn *net.UnixConn) {
	for k.awaitDetach(conn) {
		k.endHold(conn, true)
	}
	k.endHold(conn, false)
}

// answer serves the first request of a connection and returns what it said.
func (k *keeper) answer(conn *net.UnixConn, who peer, r request) reply {
	defer k.visitors.turn(who.uid)()
	if r.Inspect {
		return k.sendReport(conn, who, r)
	}
	if r.Ping {
		send(conn, reply{Protocol: protocolVersion, Closing: k.ending.Load()}, nil) // or who asked is gone
		return reply{}
	}
	k.enter()
	defer k.exit()
	if r.Attach != nil && k.phase == up {
		k.awaitRemovals(k.names.tap(r.Attach.Port))
	}
	answer, files := k.decide(conn, who, r)
	if who.trusted() { // others can't end what they can't begin
		k.endIfIdle() // before it says so: who hears it asks whether it is ending
	}
	answer.Protocol = protocolVersion
	conn.SetWriteDeadline(time.Now().Add(answerTimeout))
	err := send(conn, answer, files)
	err = errors.Join(err, closeAll(files))
	if err != nil {
		k.log.Warn("lost somebody before the answer", "uid", who.uid, "cause", err)
	}
	if k.phase == up {
		k.services.follow(k)
	}
	return answer
}

func (k *keeper) decide(conn *net.UnixConn, who peer, r request) (reply, []*os.File) {
	if why := k.refuses(who, r); why != "" {
		return reply{Refused: &refusal{Text: why}}, nil
	}
	switch far := k.elsewhere(who, r); {
	case r.Down:
		return k.down(), nil
	case k.phase == closing:
		return reply{Closing: true}, nil
	case far != nil:
		return reply{Refused: newRefusal(far)}, nil
	case r.Hold != nil:
		return k.takeHold(conn, who, *r.Hold), nil
	case r.Attach.Resume:
		return k.resumePort(conn, who, *r.Attach), nil
	}
	info, files, err := k.attach(conn, who, *r.Attach)
	if err != nil {
		k.log.Warn("refused a member", "vm", r.Attach.Port.VM, "uid", who.uid, "cause", err)
		return reply{Refused: newRefusal(err)}, nil
	}
	return reply{Attached: info}, files
}

// attach gives a member its port, bringing the network up for the first one.
func (k *keeper) attach(conn *net.UnixConn, who peer, r attachRequest) (*attachment, []*os.File, error) {
	if err := r.check(); err != nil {
		return nil, nil, err
	}
	if k.phase == fresh {
		if err := k.bringUp(r.Net); err != nil {
			return nil, nil, err
		}
	}
	if err := k.network.Spec.unlike(r.Net); err != nil {
		return nil, nil, err
	}
	if h := k.ports[r.ID]; h != nil {
		if h.UID != who.uid {
			return nil, nil, errors.New("the port is another user's")
		}
		k.forget(h)
		if k.phase != up {
			return nil, nil, errors.New("the network has just gone down")
		}
	}
	return k.newPort(conn, who, r)
}

// leave ends a membership. The last one ends the network.
func (k *keeper) leave(id string, conn *net.UnixConn, polite bool) {
	k.enter()
	defer k.exit()
	h := k.ports[id]
	if h == nil || h.conn != conn {
		return // another connection of the same member has taken over
	}
	k.log.Info("member leaves", "vm", h.Spec.VM, "link", h.Link, "polite", polite)
	result := k.removePort(h)
	if polite {
		k.tell(conn, reply{Detached: &result})
	}
}

// removePort takes a port away; with the last one goes the network, unless it
// is held.
func (k *keeper) removePort(h *holding) detachResult {
	delete(k.ports, h.ID)
	k.tellPort(Left, h)
	var result detachResult
	if !k.idle() || len(k.leaving.running) > 0 {
		k.services.release(h.Spec.MAC)
		if err := k.remove(h); err != nil {
			result.Errors = err.Error()
		}
	}
	k.endIfIdle() // the port's TAP goes with the network, if it is still there
	if k.phase == closing {
		return k.result
	}
	return result
}
