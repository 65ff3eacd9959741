package vm

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/netsetup"
)

func phasesOf(t *testing.T, h Host) map[string]Phase {
	t.Helper()
	found, err := List(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]Phase{}
	for _, m := range found {
		got[m.Name] = m.Phase
	}
	return got
}

func checkPhases(t *testing.T, h Host, want map[string]Phase) {
	t.Helper()
	if diff := cmp.Diff(want, phasesOf(t, h)); diff != "" {
		t.Errorf("machines (-want +got):\n%s", diff)
	}
}

// A machine is found while it lives, with what it is.
func TestFind(t *testing.T) {
	f := newFixture(t, "serve")
	checkPhases(t, f.host, map[string]Phase{})
	i := f.launch(t)
	checkPhases(t, f.host, map[string]Phase{"web": Running})
	m, err := Open(t.Context(), f.host, "web")
	if err != nil || m.QEMU != i.PID() || m.Supervisor != os.Getpid() || m.Profile != f.profile.File || m.Started.IsZero() {
		t.Errorf("found %+v, %v", m, err)
	}
	if diff := cmp.Diff(i.Plan(), m.Plan); diff != "" {
		t.Errorf("the plan is not what it was (-plan +found):\n%s", diff)
	}
	if u, err := m.Usage(); err != nil || u.Memory <= 0 {
		t.Errorf("usage is %+v, %v", u, err)
	}
	if err := i.Close(); err != nil {
		t.Fatal(err)
	}
	checkPhases(t, f.host, map[string]Phase{})
	if m.Fate(t.Context()) != Ended {
		t.Errorf("its fate is %s", m.Fate(t.Context()))
	}
}

// What a guest was seen to use is told to others.
func TestSightings(t *testing.T) {
	f := everything(t, "serve")
	seen := make(chan netip.Addr, 2)
	f.options.watch = func(string, netsetup.MAC, *hearing) (func(context.Context) (netip.Addr, error), error) {
		return func(c context.Context) (netip.Addr, error) {
			select {
			case a := <-seen:
				return a, nil
			case <-c.Done():
				return netip.Addr{}, c.Err()
			}
		}, nil
	}
	i := f.launch(t)
	addr := netip.MustParseAddr("10.70.0.12")
	seen <- addr
	seen <- addr
	for _, nic := range []int{0, 2} {
		if got, err := i.AwaitAddress(t.Context(), nic); got != addr || err != nil {
			t.Errorf("NIC %d was seen to use %v, %v", nic, got, err)
		}
	}
	if _, err := i.AwaitAddress(t.Context(), 1); err == nil || !strings.Contains(err.Error(), "mode user") {
		t.Errorf("in mode user: %v", err)
	}
	if got := i.NICs()[0].Address(); got != addr {
		t.Errorf("the NIC's address is %v", got)
	}
}

// A machine whose lock is free although its state is there is dead, whatever
// process has its ids by now.
func TestFindDead(t *testing.T) {
	f := newFixture(t, "serve")
	dir := filepath.Join(f.host.Dirs.Runtime, "vms/web")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	err := writeState(filepath.Join(dir, stateFile), State{Name: "web", Phase: Running, Supervisor: os.Getpid(), QEMU: os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	checkPhases(t, f.host, map[string]Phase{"web": Dead})
	// Its name can be had.
	f.launch(t)
	checkPhases(t, f.host, map[string]Phase{"web": Running})
}

// A QEMU that a signal has stopped is told from one that runs.
func TestFindFrozen(t *testing.T) {
	f := newFixture(t, "serve")
	i := f.launch(t)
	if err := unix.Kill(i.PID(), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// The kernel tells when it has stopped; it is our child.
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, i.PID(), &info, unix.WSTOPPED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	checkPhases(t, f.host, map[string]Phase{"web": Frozen})
	if why := StoppedProcess("QEMU", i.PID()); !strings.Contains(why, "was stopped by a signal") {
		t.Errorf("it says %q", why)
	}
}

func TestUnknown(t *testing.T) {
	f := newFixture(t, "serve")
	f.launch(t)
	for name, want := range map[string]string{
		"wbe": `no virtual machine "wbe"; did you mean web?`, "database": `no virtual machine "database"`,
		"": `no virtual machine ""`, "../web": `no virtual machine "../web"`, ".": `no virtual machine "."`,
	} {
		_, err := Open(t.Context(), f.host, name)
		if _, ok := errors.AsType[*UnknownError](err); !ok || err.Error() != want {
			t.Errorf("%q: %v, want %s", name, err, want)
		}
	}
}

// What is kept outlives the machine, with its end and its logs, until it is
// removed.
func TestKeep(t *testing.T) {
	f := newFixture(t, "off")
	f.options.Keep = true
	i := f.launch(t)
	wait(t, i)
	i.NoteEnd(End{Code: 124, By: "vmrun", Reason: "timeout", Error: "too late"})
	if err := i.Close(); err != nil {
		t.Fatal(err)
	}
	checkPhases(t, f.host, map[string]Phase{"web": Ended})
	m, err := Open(t.Context(), f.host, "web")
	if err != nil || m.End == nil || m.End.Code != 124 || m.End.Error != "too late" || m.End.Ending.Reason != GuestShutdown {
		t.Errorf("found %+v, %v", m.End, err)
	}
	if text := readLog(t, m, time.Time{}); !strings.Contains(text, "begin") {
		t.Errorf("the console's log is %q", text)
	}
	_, err = Launch(t.Context(), f.plan(t), f.host, f.options)
	if lack, ok := errors.AsType[*HostError](err); !ok || lack.Need != NeedRemoval {
		t.Errorf("another launch: %v", err)
	}
	snapshots := filepath.Join(f.host.Dirs.State, "vms/web/snapshots")
	if err := errors.Join(os.Mkdir(snapshots, 0o700), Remove(t.Context(), f.host, "web")); err != nil {
		t.Fatal(err)
	}
	checkPhases(t, f.host, map[string]Phase{})
	left, err := filepath.Glob(filepath.Join(f.host.Dirs.State, "vms/web/*"))
	if diff := cmp.Diff([]string{snapshots}, left); diff != "" || err != nil {
		t.Errorf("left is (%v; -want +got):\n%s", err, diff)
	}
}

func TestRemoveAlive(t *testing.T) {
	f := newFixture(t, "serve")
	f.launch(t)
	if err := Remove(t.Context(), f.host, "web"); !errors.Is(err, ErrAlive) {
		t.Errorf("removed, or %v", err)
	}
	checkPhases(t, f.host, map[string]Phase{"web": Running})
}

func TestParseStat(t *testing.T) {
	line := "42 (qemu (a) b) T 1 42 42 0 -1 4194560 2311 0 0 0 250 50 0 0 20 0 5 0 123 1000000 2560 18446744073709551615 0"
	got, err := parseStat([]byte(line))
	if want := (processStat{state: 'T', cpu: 3e9, resident: 2560 * int64(os.Getpagesize())}); err != nil || got != want || !got.stopped() {
		t.Errorf("parsed %+v, %v", got, err)
	}
	for _, bad := range []string{"", "42", "42 (x) S 1"} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("parsed %q", bad)
		}
	}
}
