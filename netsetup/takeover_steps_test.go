package netsetup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/netsetup/firewall"
	"github.com/vmrun/vmrun/netsetup/uplink"
)

// killed is a kernel that ends its process by SIGKILL right after the change of
// the host with a number; 0 is right before the first.
type killed struct {
	kernel
	after int32
	done  *atomic.Int32
}

func (k killed) count(err error) error {
	if k.done.Add(1) == k.after {
		unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	}
	return err
}

func (k killed) AddBridge(b addBridge) error         { return k.count(k.kernel.AddBridge(b)) }
func (k killed) DelLinks(g uint32, n []string) error { return k.count(k.kernel.DelLinks(g, n)) }
func (k killed) Enslave(link, bridge string) error   { return k.count(k.kernel.Enslave(link, bridge)) }
func (k killed) Release(link, bridge string) error   { return k.count(k.kernel.Release(link, bridge)) }
func (k killed) SetUp(link string) error             { return k.count(k.kernel.SetUp(link)) }
func (k killed) SetSysctl(key, value string) error   { return k.count(k.kernel.SetSysctl(key, value)) }
func (k killed) AddRules(r firewall.Rules) error     { return k.count(k.kernel.AddRules(r)) }
func (k killed) DelTables(network string) error      { return k.count(k.kernel.DelTables(network)) }

func (k killed) DelChains(b firewall.Backend, c []firewall.Jumped) error {
	return k.count(k.kernel.DelChains(b, c))
}

func (k killed) PutAddress(link string, a uplink.Address) error {
	return k.count(k.kernel.PutAddress(link, a))
}
func (k killed) DelAddress(link string, a uplink.Address) error {
	return k.count(k.kernel.DelAddress(link, a))
}
func (k killed) PutRoute(link string, r uplink.Route) error {
	return k.count(k.kernel.PutRoute(link, r))
}
func (k killed) DelRoute(link string, r uplink.Route) error {
	return k.count(k.kernel.DelRoute(link, r))
}
func (k killed) PutNeighbour(link string, n uplink.Neighbour) error {
	return k.count(k.kernel.PutNeighbour(link, n))
}
func (k killed) AddPolicyRule(link string, r uplink.Rule) error {
	return k.count(k.kernel.AddPolicyRule(link, r))
}
func (k killed) DelPolicyRule(link string, r uplink.Rule) error {
	return k.count(k.kernel.DelPolicyRule(link, r))
}

// takeOverAndBack is a process that takes the uplink over and gives it back, as a
// keeper does, and is killed after a number of changes. If it lives, it prints how
// many there were.
func takeOverAndBack(runtime, after, guarded string) error {
	n, err := strconv.Atoi(after)
	if err != nil {
		return err
	}
	h, spec := Host{Executable: os.Args[0], Runtime: runtime}, takeoverSpec()
	dir := filepath.Join(netsFolder(h.Runtime), spec.folder())
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	lock, err := lockForLife(filepath.Join(dir, "lock"))
	if err != nil {
		return err
	}
	real, err := newHost(lock)
	if err != nil {
		return err
	}
	c, err := newClaims(h.Runtime)
	if err != nil {
		return err
	}
	j, err := openJournal(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	facts, id, err := ReadFacts(h, spec)
	if err != nil {
		return err
	}
	r, steps, err := planNetwork(spec, newNames(id, spec), facts)
	if err != nil {
		return err
	}
	var g *guardian
	if guarded == "guarded" {
		undo, err := undosOf(steps)
		if err != nil {
			return err
		}
		if g, err = startDeadman(h, dir, orders{Version: journalVersion, Keeper: os.Getpid(), Bridge: r.Link, Undo: undo, Confirm: confirmTimeout}); err != nil {
			return err
		}
	}
	k := killed{real, int32(n), new(atomic.Int32)}
	w := &effects{kernel: k, claims: c}
	if err := errors.Join(apply(w, j, steps), j.undo(w), j.close(), g.disarm()); err != nil {
		return err
	}
	fmt.Println(k.done.Load())
	return nil
}

// TestEveryChangeOfATakeoverKilled kills whoever takes the uplink over, or gives
// it back, after each single change of the host. The dead-man behind it puts the
// host back, or, where there is none, a sweep.
func TestEveryChangeOfATakeoverKilled(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	usedUplink(t)
	h := testHost(t)
	network(t)
	before := network(t)
	s := newSession(t, "192.0.2.2:0")
	changes := countChanges(t, h)
	for after := 1; after <= changes; after++ {
		for _, how := range []string{"guarded", "alone"} {
			if how == "alone" && after%4 != 0 { // the undo is the same
				continue
			}
			err := exec.Command(os.Args[0], "takeover-and-back", h.Runtime, fmt.Sprint(after), how).Run()
			if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("after change %d: %v, want a kill", after, err)
			}
			awaitAlone(t)
			if how == "alone" {
				if _, err := Sweep(context.Background(), h); err != nil {
					t.Errorf("after change %d: %v", after, err)
				}
			}
			s.works(t)
			if diff := cmp.Diff(before, network(t)); diff != "" {
				t.Fatalf("%s, killed after change %d, left:\n%s", how, after, diff)
			}
		}
	}
	t.Logf("killed after each of %d changes", changes)
}

func countChanges(t *testing.T, h Host) (changes int) {
	t.Helper()
	out, err := exec.Command(os.Args[0], "takeover-and-back", h.Runtime, "0", "guarded").Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if _, err := fmt.Sscan(string(out), &changes); err != nil {
		t.Fatal(err)
	}
	if changes < 60 {
		t.Fatalf("only %d changes were counted", changes)
	}
	return changes
}
