package netsetup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var labGroup = &Group{ID: 7000, Name: "lab"}

// openedLAN holds the network lan for a group, and takes it down at the end of
// the test, when nothing may be left.
func openedLAN(t *testing.T, group *Group) Host {
	t.Helper()
	uplinks(t)
	h := rootHost(t)
	hostState(t)
	before := hostState(t)
	ctx := context.Background()
	if err := StartHolder(ctx, h, specs()["nat"], group); err != nil {
		t.Fatalf("%v\n%s", err, keeperLogs(h))
	}
	t.Cleanup(func() {
		if err := Down(ctx, h, "lan", specs()["nat"].Dir); err != nil {
			t.Errorf("%v\n%s", err, keeperLogs(h))
		}
		awaitAlone(t)
		leftNothing(t, h, before, hostState)
	})
	return h
}

// guestPort is a port of a user without root.
func guestPort(i int) order {
	p := portOf(i)
	p.VM, p.MAC[3] = "guest-"+p.VM, 0xaa
	return order{Do: "attach", Spec: specs()["nat"], Port: p}
}

// awaitReport waits until a network is as it should be, for as long as an
// adoption may take.
func awaitReport(t *testing.T, h Host, is func(Report) bool) Report {
	t.Helper()
	started := time.Now()
	r := lan(t, h)
	for ; !is(r); r = lan(t, h) {
		if time.Since(started) > adoptionLimit() {
			t.Fatalf("after %v: %+v\n%s", adoptionLimit(), r, keeperLogs(h))
		}
	}
	t.Logf("after %v", time.Since(started))
	return r
}

// TestGroup: members of a group have ports on root's network, through the death
// of its keeper.
func TestGroup(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	h := openedLAN(t, labGroup)
	first := newPuppet(t, 1000, 1000, 4, 7000) // by a supplementary group
	second := newPuppet(t, 1001, 7000)         // by the primary one
	a, b := first.must(guestPort(1)), second.must(guestPort(2))
	if a.Link == b.Link || a.IP == b.IP {
		t.Errorf("%+v and %+v", a, b)
	}
	r := lan(t, h)
	if len(r.Members) != 2 || r.Members[0].UID != 1000 || r.Members[0].PID != first.cmd.Process.Pid || r.Group == nil || r.Group.Name != "lab" {
		t.Errorf("report %+v", r)
	}
	if out := first.must(order{Do: "inspect", Spec: specs()["nat"]}); out.At != 2 {
		t.Errorf("a member sees %d members, want 2", out.At)
	}
	for range 2 {
		kill(t, only(t)) // root's holder starts another, and they wait for it
		awaitReport(t, h, func(r Report) bool {
			return len(r.Members) == 2 && r.Members[0].PID != 0 && r.Members[1].PID != 0 && len(r.Holders) == 1
		})
	}
	if out := first.does(order{Do: "close", At: a.At}); out.Err != "" {
		t.Error(out.Err)
	}
	second.kill()
	awaitReport(t, h, func(r Report) bool { return len(r.Members) == 0 })
	// With the last of them, the network stays: it is root's.
	if r := lan(t, h); r.State != Up {
		t.Errorf("state %q", r.State)
	}
}

// TestStranger: who is not in the group is told who may, and can do nothing.
func TestStranger(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	h := openedLAN(t, labGroup)
	stranger := newPuppet(t, 2000, 2000, 4)
	out := stranger.does(guestPort(1))
	if want := "attach to network lan: root runs it for group 7000, which you are not in"; out.Err != want {
		t.Errorf("got %q, want %q", out.Err, want)
	}
	if out := stranger.does(order{Do: "dial"}); !strings.Contains(out.Err, "permission denied") {
		t.Errorf("dial: %q", out.Err)
	}
	if out := stranger.does(order{Do: "inspect", Spec: specs()["nat"]}); !strings.Contains(out.Err, "root runs it for group 7000") {
		t.Errorf("inspect: %q", out.Err)
	}
	if out := stranger.does(order{Do: "down", Spec: specs()["nat"]}); out.Err != "take network lan down: only root can take the network down" {
		t.Errorf("down: %q", out.Err)
	}
	absent := guestPort(1)
	absent.Spec.Name = "other"
	absent.Spec.Shared = true
	if out := stranger.does(absent); out.Err == "" {
		t.Error("a stranger made a network")
	}
	// Root's alone again: its members are strangers, too.
	if err := Down(context.Background(), h, "lan", specs()["nat"].Dir); err != nil {
		t.Fatal(err)
	}
	if err := StartHolder(context.Background(), h, specs()["nat"], nil); err != nil {
		t.Fatal(err)
	}
	out = newPuppet(t, 1000, 7000).does(guestPort(1))
	if want := "attach to network lan: root runs it, for itself alone"; out.Err != want {
		t.Errorf("got %q, want %q", out.Err, want)
	}
}

// TestDenied: who may not reach a keeper is told whose net down is, and programs
// why.
func TestDenied(t *testing.T) {
	err := fmt.Errorf("take network lan down: %w", deniedError{&os.PathError{Op: "dial", Path: "socket", Err: unix.EACCES}})
	if !errors.Is(err, fs.ErrPermission) || err.Error() != "take network lan down: only root can take the network down" {
		t.Errorf("%v, of a refused permission: %t", err, errors.Is(err, fs.ErrPermission))
	}
}
