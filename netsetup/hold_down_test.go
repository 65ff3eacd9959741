package netsetup

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// lateHolder brings lan up and kills its keeper while the holder can't see it,
// as if the kernel gave the holder no time. The holder goes on with back.
func lateHolder(t *testing.T, h Host) (back func()) {
	t.Helper()
	if err := StartHolder(context.Background(), h, specs()["nat"], nil); err != nil {
		t.Fatal(err)
	}
	r := lan(t, h)
	holder := r.Holders[0].PID
	halt(t, holder)
	kill(t, r.KeeperID)
	return func() {
		t.Helper()
		if err := unix.Kill(holder, unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDownBeforeTheHolderIsBack: whatever there is of the network when it is
// told to go down, a holder that has lost its keeper does not bring it up again.
func TestDownBeforeTheHolderIsBack(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	h, before := uplinkedHost(t)
	ctx, spec := context.Background(), specs()["nat"]
	for what, meanwhile := range map[string]func(*testing.T){
		"keeper killed":  func(*testing.T) {},
		"swept":          func(t *testing.T) { sweep(t, h) },
		"used meanwhile": func(t *testing.T) { use(t, h, spec) },
	} {
		t.Run(what, func(t *testing.T) {
			back := lateHolder(t, h)
			meanwhile(t)
			if err := Down(ctx, h, "lan", spec.Dir); err != nil {
				t.Errorf("%v\n%s", err, keeperLogs(h))
			}
			if diff := cmp.Diff(before, hostState(t)); diff != "" {
				t.Errorf("down left:\n%s", diff)
			}
			back()
			awaitAlone(t)
			if diff := cmp.Diff(before, hostState(t)); diff != "" {
				t.Errorf("the holder has left:\n%s\n%s", diff, keeperLogs(h))
			}
			if err := Down(ctx, h, "lan", spec.Dir); !errors.As(err, new(*NotFoundError)) {
				t.Errorf("down once more: %v", err)
			}
		})
	}
}

// TestDownWithAVMBeforeTheHolderIsBack: the network goes with the VM then, also
// where the holder hears of it only from the next keeper.
func TestDownWithAVMBeforeTheHolderIsBack(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	h, before := uplinkedHost(t)
	ctx, spec := context.Background(), specs()["nat"]
	for _, late := range []bool{false, true} { // whether the VM's supervisor is stopped as well
		if err := StartHolder(ctx, h, spec, nil); err != nil {
			t.Fatal(err)
		}
		m := startMember(t, h, "nat")
		r := lan(t, h)
		stopped := []int{r.Holders[0].PID}
		if late {
			stopped = append(stopped, m.Process.Pid)
		}
		halt(t, stopped...)
		kill(t, r.KeeperID)
		var busy *BusyError
		if err := Down(ctx, h, "lan", spec.Dir); !errors.As(err, &busy) || !slices.Equal(busy.VMs, []string{"web"}) {
			t.Errorf("down with a VM: %v", err)
		}
		for _, pid := range stopped {
			unix.Kill(pid, unix.SIGCONT)
		}
		awaitReport(t, h, func(r Report) bool { return len(r.Holders) == 1 })
		if r := lan(t, h); r.State != GoingDown {
			t.Errorf("late %v: state %q, want going down", late, r.State)
		}
		m.Process.Kill()
		m.Wait()
		awaitAlone(t)
		if diff := cmp.Diff(before, hostState(t)); diff != "" {
			t.Errorf("late %v: left behind:\n%s\n%s", late, diff, keeperLogs(h))
		}
	}
}

// TestUpBeforeTheHolderIsBack: who brings the network up then is its holder, and
// the late one ends.
func TestUpBeforeTheHolderIsBack(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	h, before := uplinkedHost(t)
	ctx, spec := context.Background(), specs()["nat"]
	back := lateHolder(t, h)
	if err := StartHolder(ctx, h, spec, nil); err != nil {
		t.Fatal(err)
	}
	held := lan(t, h).Holders
	back()
	for pids := others(t); len(pids) > 2; pids = others(t) {
		for _, pid := range pids {
			if pid != held[0].PID && pid != lan(t, h).KeeperID {
				awaitEnd(t, pid, 0)
			}
		}
	}
	if diff := cmp.Diff(held, lan(t, h).Holders); diff != "" {
		t.Errorf("holders:\n%s", diff)
	}
	if err := Down(ctx, h, "lan", spec.Dir); err != nil {
		t.Error(err)
	}
	awaitAlone(t)
	leftNothing(t, h, before, hostState)
}

// TestDownAtAFreshKeeper: a keeper that was started for a holder, and is told to
// go down before it has heard it, turns the holder away.
func TestDownAtAFreshKeeper(t *testing.T) {
	k, _ := fakeKeeper(t)
	root := peer{uid: 0}
	down := func() reply {
		answer, _ := k.decide(nil, root, request{Protocol: protocolVersion, Down: true})
		return answer
	}
	again := func(id string) reply {
		conn, _ := socketPair(t)
		answer, _ := k.decide(conn, root, request{Protocol: protocolVersion,
			Hold: &holdRequest{ID: id, Net: specs()["bridge-join"], Again: true}})
		return answer
	}
	if answer := down(); !answer.Closing {
		t.Errorf("down of what nobody holds: %+v", answer)
	}
	if err := (holdMark{ID: "a"}).save(k.dir); err != nil {
		t.Fatal(err)
	}
	if answer := again("b"); answer.Down == nil || !answer.Down.Replaced {
		t.Errorf("another holder is the one: %+v", answer)
	}
	if answer := down(); answer.Down == nil {
		t.Errorf("down before the holder is back: %+v", answer)
	}
	if answer := again("a"); answer.Down == nil || k.phase != fresh || exists(filepath.Join(k.dir, "journal")) && len(k.journal.entries) > 0 {
		t.Errorf("the holder is back: %+v, phase %v", answer, k.phase)
	}
}

// TestHolderKilledWithKeeper: a hold whose holder is dead is over once the network
// is undone, however it comes to that.
func TestHolderKilledWithKeeper(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	uplinks(t)
	h := testHost(t)
	ctx, spec := context.Background(), specs()["nat"]
	mark := filepath.Join(netsFolder(h.Runtime), spec.folder(), holdName)
	for what, meanwhile := range map[string]func(*testing.T){
		"swept": func(t *testing.T) { sweep(t, h) },
		"used":  func(t *testing.T) { use(t, h, spec) },
	} {
		t.Run(what, func(t *testing.T) {
			lateHolder(t, h)
			for _, pid := range others(t) {
				kill(t, pid)
			}
			meanwhile(t)
			if exists(mark) {
				t.Error("its mark is still there")
			}
			if err := Down(ctx, h, "lan", spec.Dir); !errors.As(err, new(*NotFoundError)) {
				t.Errorf("down: %v", err)
			}
		})
	}
}

// TestDownOfADeadHoldersMark: a mark that outlived its holder, since somebody asked
// for the hold while the network was undone, is no network that goes down.
func TestDownOfADeadHoldersMark(t *testing.T) {
	h, ctx := testHost(t), context.Background()
	dir := filepath.Join(netsFolder(h.Runtime), "lan")
	if err := os.MkdirAll(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	for _, lives := range []bool{false, true} { // whether the holder is only late
		asking := must(lockHold(dir))
		if err := errors.Join(holdMark{ID: "a"}.save(dir), settleHold(dir)); err != nil {
			t.Fatal(err)
		}
		if !lives {
			asking.Close()
		}
		if err := Down(ctx, h, "lan", ""); errors.As(err, new(*NotFoundError)) == lives || lives && err != nil {
			t.Errorf("lives %v: down: %v", lives, err)
		}
		if exists(filepath.Join(dir, holdName)) {
			t.Errorf("lives %v: its mark is still there", lives)
		}
		asking.Close()
	}
}

// TestHolderIsBackAfterSweep: a sweep leaves a living holder its hold, and the
// network comes up again.
func TestHolderIsBackAfterSweep(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	uplinks(t)
	h := testHost(t)
	ctx, spec := context.Background(), specs()["nat"]
	back := lateHolder(t, h)
	if lines, err := Sweep(ctx, h); err != nil || lines == nil {
		t.Errorf("swept %q, %v", lines, err)
	}
	back()
	for started := time.Now(); ; {
		r, err := Inspect(ctx, h, "lan", spec.Dir)
		if err == nil && r.State == Up && len(r.Holders) == 1 {
			break
		}
		if time.Since(started) > adoptionLimit() {
			t.Fatalf("%+v, %v\n%s", r, err, keeperLogs(h))
		}
	}
	if err := Down(ctx, h, "lan", spec.Dir); err != nil {
		t.Error(err)
	}
	awaitAlone(t)
}

// TestHoldEndsWithAnAbandonedNetwork: what its keeper gives up has no holder.
func TestHoldEndsWithAnAbandonedNetwork(t *testing.T) {
	k, _ := fakeKeeper(t)
	conn, _ := socketPair(t)
	answer, _ := k.decide(conn, peer{uid: 0}, request{Protocol: protocolVersion, Hold: &holdRequest{ID: "a", Net: specs()["bridge-join"]}})
	if answer.Held == nil || !exists(filepath.Join(k.dir, holdName)) {
		t.Fatalf("hold: %+v", answer)
	}
	k.abandon("the bridge is gone")
	if exists(filepath.Join(k.dir, holdName)) {
		t.Error("its mark was left")
	}
}
