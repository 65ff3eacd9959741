package netsetup

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/vmrun/vmrun/netsetup/uplink"
)

const (
	// armTimeout bounds the start of a dead-man process.
	armTimeout = 10 * time.Second
	// rearmPause is between one that died and the next.
	rearmPause = time.Second
)

// guardian is the keeper's end of its dead-man process. A nil one does nothing.
type guardian struct {
	orders orders
	words  io.WriteCloser
	died   chan struct{} // closed when the process has ended
}

// arm starts a dead-man process, if the network has taken a used uplink over, and
// returns once it is ready.
func (k *keeper) arm(undo []undoEntry, confirm time.Duration) error {
	if !k.network.Takeover {
		return nil
	}
	o := orders{Version: journalVersion, Keeper: os.Getpid(), Bridge: k.network.Link, Undo: undo, Confirm: confirm}
	g, err := startDeadman(k.host, k.dir, o)
	if err != nil {
		return fmt.Errorf("start dead-man process: %w", err)
	}
	k.guardian = g
	go k.rearm(g)
	return nil
}

// rearm replaces a dead-man that has died before its time.
func (k *keeper) rearm(g *guardian) {
	for {
		<-g.died
		k.mu.Lock()
		if k.guardian != g {
			k.mu.Unlock()
			return // disarmed
		}
		k.log.Warn("the dead-man process died, starting another one")
		next, err := startDeadman(k.host, k.dir, g.orders)
		if err == nil {
			k.guardian, g = next, next
		}
		k.mu.Unlock()
		if err != nil {
			k.log.Error("start dead-man process", "cause", err)
			time.Sleep(rearmPause)
		}
	}
}

func startDeadman(h Host, dir string, o orders) (*guardian, error) {
	text, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("encode orders: %w", err)
	}
	network := filepath.Base(dir)
	argv := scoped(scopeRunner(), "vmrun dead-man of network "+network,
		[]string{h.Executable, "deadman", "--runtime", h.Runtime, "--state", h.State, "--network", network})
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = "/"
	cmd.Env = []string{keeperPath}
	cmd.Stderr = os.Stderr // keeper.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	words, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	answer, err := cmd.StdoutPipe()
	if err != nil {
		return nil, errors.Join(err, words.Close())
	}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, words.Close(), answer.Close())
	}
	g := &guardian{orders: o, words: words, died: make(chan struct{})}
	late := time.AfterFunc(armTimeout, func() { cmd.Process.Kill() })
	defer late.Stop()
	_, err = words.Write(append(text, '\n'))
	word, readErr := bufio.NewReader(answer).ReadString('\n')
	go func() {
		cmd.Wait() // what went wrong is in the log
		close(g.died)
	}()
	if err := errors.Join(err, readErr); err != nil || word != wordArmed+"\n" {
		cmd.Process.Kill()
		<-g.died
		return nil, fmt.Errorf("it does not answer: %w", errors.Join(err, errors.New(lastLine(dir))))
	}
	return g, nil
}

// say tells the dead-man something. One that has died is no failure: another one
// is about to replace it.
func (g *guardian) say(word string) error {
	_, err := fmt.Fprintln(g.words, word)
	if errors.Is(err, syscall.EPIPE) {
		return nil
	}
	return err
}

// confirm tells the dead-man that the host is connected over the bridge.
func (g *guardian) confirm() error {
	if g == nil {
		return nil
	}
	g.orders.Confirm = 0
	return g.say(wordConfirmed)
}

// note tells the dead-man that the journal has changed, and how.
func (g *guardian) note(undo []undoEntry) error {
	if g == nil {
		return nil
	}
	g.orders.Undo = undo // for the next one
	return g.say(wordNoted)
}

// goBack tells the dead-man that the undo has begun: nobody waits for another
// keeper then.
func (g *guardian) goBack() error {
	if g == nil {
		return nil
	}
	return g.say(wordUndoing)
}

// disarm ends the dead-man and waits for its end.
func (g *guardian) disarm() error {
	if g == nil {
		return nil
	}
	err := errors.Join(g.say(wordDisarmed), g.words.Close())
	select {
	case <-g.died:
		return nil
	case <-time.After(armTimeout):
		return errors.Join(err, errors.New("the dead-man process does not end"))
	}
}

// undosOf lists the undos of steps.
func undosOf(steps []step) ([]undoEntry, error) {
	var all []undoEntry
	for _, s := range steps {
		if s.undo == nil {
			continue
		}
		e, err := encodeUndo(s.undo)
		if err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	return all, nil
}

// armBefore starts the dead-man before any of the steps is done.
func (k *keeper) armBefore(steps []step) error {
	undo, err := undosOf(steps)
	if err != nil {
		return err
	}
	return k.arm(undo, confirmTimeout)
}

// armAgain starts a dead-man for a network that was adopted.
func (k *keeper) armAgain() error {
	return k.arm(k.journal.general(), 0)
}

// standDown ends the dead-man's watch when nothing is left to undo.
func (k *keeper) standDown() error {
	if len(k.journal.entries) > 0 {
		return nil // it will try again after us
	}
	g := k.guardian
	k.guardian = nil
	return g.disarm()
}

// keepLeases renews the leases that the host has on the bridge, which its own
// client can't any more: its socket on the uplink sees nothing. Addresses without
// a limit are nobody's lease.
func (s *services) keepLeases(ctx context.Context, k *keeper) error {
	if !s.network.Takeover {
		return nil
	}
	state, err := k.w.kernel.State(s.network.Link)
	if err != nil {
		return fmt.Errorf("look for leases: %w", err)
	}
	for _, a := range state.Addresses {
		if a.IsLease() {
			s.running.Go(func() { k.keepLease(ctx, a) })
		}
	}
	return nil
}

// leaseRetry is how long to wait after a failure, at most and at least.
const (
	leaseRetryMost  = time.Minute
	leaseRetryLeast = 5 * time.Second
)

// keepLease renews one lease for as long as the network is up, at once and then
// when the server wants it. One that is refused, or of which an eighth is left,
// is lost, and the host's own client is needed: the network ends.
func (k *keeper) keepLease(ctx context.Context, a uplink.Address) {
	log := k.log.With("address", a.Prefix.String(), "link", k.network.Link)
	valid := time.Duration(a.Valid) * time.Second
	end := time.Now().Add(valid)
	for wait := time.Duration(0); ; {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		lease, err := uplink.Renew(ctx, k.network.Link, a.Prefix.Addr())
		if err == nil {
			err = k.prolong(&a, lease)
		}
		left := time.Until(end)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			go k.relend() // it may wait for who waits for us
			valid, wait = lease.Valid, lease.RenewIn
			end = time.Now().Add(valid)
			log.Info("renewed the host's lease", "valid", valid.String(), "again_in", wait.String())
		case errors.Is(err, errGone):
			log.Info("the host's lease is no longer on the bridge")
			return
		case left < valid/8:
			log.Error("lost the host's lease", "cause", err)
			go k.abandon("the host's lease on the bridge was lost") // it waits for us
			return
		default:
			// The last try is when an eighth is left.
			wait = min(max(left/8, leaseRetryLeast), leaseRetryMost, max(left-valid/8, time.Second))
			log.Warn("renew the host's lease", "cause", err, "left", left.Round(time.Second).String(), "again_in", wait.String())
		}
	}
}

// prolong gives an address the lifetime that the server has granted; errGone
// where somebody has taken it away.
func (k *keeper) prolong(a *uplink.Address, lease uplink.Lease) error {
	now, err := k.w.kernel.State(k.network.Link)
	if err != nil {
		return err
	}
	if !now.HasAddress(*a) {
		return errGone
	}
	a.Valid = uint32(min(lease.Valid/time.Second, math.MaxUint32))
	a.Preferred = a.Valid
	return k.w.kernel.PutAddress(k.network.Link, *a)
}

// lent is what the network has taken over from an uplink, with the numbers of its
// journal entries; none where it has not. A keeper that was killed in relend has
// left two, of which the newer one counts.
func (k *keeper) lent() (back giveBack, seqs []int) {
	if !k.network.Takeover {
		return giveBack{}, nil
	}
	for _, e := range k.journal.entries {
		u, err := e.Undo.decode()
		if b, ok := u.(giveBack); err == nil && ok {
			back, seqs = b, append(seqs, e.Seq)
		}
	}
	return back, seqs
}

// relend notes what the uplink is to have back by now, should the bridge be gone
// then: the lifetimes of before end.
func (k *keeper) relend() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.phase != up || k.checkBridge() != nil {
		return
	}
	if err := k.noteLent(); ignoreGone(err) != nil {
		k.log.Warn("note what the uplink is to have back", "cause", err)
	}
}

// noteLent replaces the journal's entry and tells the dead-man. For a moment there
// are two entries: the one that is undone last adds nothing.
func (k *keeper) noteLent() error {
	back, old := k.lent()
	if len(old) == 0 {
		return nil
	}
	read := k.w.kernel.Uptime()
	now, err := k.w.kernel.State(back.Bridge)
	if err != nil {
		return err
	}
	back.State, back.Read = now.With(back.State.Later(read-back.Read)), read
	if _, err := k.journal.recordPort(back, nil); err != nil { // even if nothing is new
		return err
	}
	var errs []error
	for _, seq := range old {
		errs = append(errs, k.journal.cross(seq))
	}
	return errors.Join(append(errs, k.guardian.note(k.journal.general()))...)
}

// abandon ends a network that still has members, so that the host has its uplink.
func (k *keeper) abandon(why string) {
	k.enter()
	defer k.exit()
	k.awaitRemovals("")
	if k.phase != up {
		return
	}
	k.log.Error("the network ends, and the host has its uplink back", "cause", why)
	held := k.held
	k.held, k.adopted = nil, nil
	k.result = k.teardown()
	clear(k.ports) // their TAPs are gone
	if held != nil {
		if err := removeHold(k.dir); err != nil {
			k.log.Warn("forget the holder", "cause", err)
		}
		k.tell(held.conn, reply{Down: &downReply{Errors: why}})
	}
}
