package vm

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vmrun/vmrun/images"
	"github.com/vmrun/vmrun/netsetup"
	"github.com/vmrun/vmrun/profiles"
	"github.com/vmrun/vmrun/vm/qemu"
)

// nodes are the names of a machine's block graph, and of the sets of files that
// it has.
func nodes(t *testing.T, i *Instance) []string {
	t.Helper()
	var graph []struct {
		Node string `json:"node-name"`
	}
	var sets []struct {
		ID int `json:"fdset-id"`
	}
	err := errors.Join(i.QMP().Run(t.Context(), "query-named-block-nodes", nil, &graph), i.QMP().Run(t.Context(), "query-fdsets", nil, &sets))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, n := range graph {
		all = append(all, n.Node)
	}
	for _, s := range sets {
		all = append(all, fmt.Sprintf("set%d", s.ID))
	}
	slices.Sort(all)
	return all
}

// A real QEMU takes disks while it runs, as many as there are places, and what is
// refused leaves nothing in it.
func TestAttachDisk(t *testing.T) {
	for _, machine := range []profiles.MachineType{profiles.Q35, profiles.PC} {
		t.Run(string(machine), func(t *testing.T) {
			h, p := realFixture(t)
			disks := p.Disks
			p.Machine.Type, p.Disks = machine, disks[:1]
			i := launchReal(t, h, realPlan(t, h, p), Options{Paused: true})
			before := nodes(t, i)
			for _, spec := range []images.DiskSpec{
				{Path: "/nonexistent", Format: images.FormatRaw},
				{Path: disks[1].Path, Format: images.FormatQCOW2},
			} {
				if _, err := i.AttachDisk(t.Context(), spec); err == nil {
					t.Errorf("%+v was attached", spec)
				}
				if diff := cmp.Diff(before, nodes(t, i)); diff != "" {
					t.Errorf("%+v left:\n%s", spec, diff)
				}
			}
			for n := range qemu.HotPorts {
				d, err := i.AttachDisk(t.Context(), images.DiskSpec{Path: disks[1].Path, Format: images.FormatRaw})
				if want := fmt.Sprintf("disk%d", n+1); err != nil || d.ID != want {
					t.Fatalf("attached %+v, %v, want %s", d, err, want)
				}
			}
			_, err := i.AttachDisk(t.Context(), images.DiskSpec{Path: disks[1].Path, Format: images.FormatRaw})
			if full := err != nil; full != (machine == profiles.Q35) {
				t.Errorf("one more: %v", err)
			}
			checkDetach(t, i)
		})
	}
}

// checkDetach asks a machine without an operating system, which lets go of nothing.
func checkDetach(t *testing.T, i *Instance) {
	t.Helper()
	for _, id := range []string{"disk0", "nic0", "disk99", ""} {
		if err := i.Detach(t.Context(), id); !errors.Is(err, ErrNotAttached) {
			t.Errorf("detach %q: %v", id, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	attached := i.Attachments()
	if err := i.Detach(ctx, "disk1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the machine let go: %v", err)
	}
	if diff := cmp.Diff(attached, i.Attachments()); diff != "" {
		t.Errorf("attached is now:\n%s", diff)
	}
}

// A guest that has let go of a device after nobody waited for that any more has
// let go of it.
func TestDetachLate(t *testing.T) {
	f := newFixture(t, "late")
	f.profile.NICs = []profiles.NIC{{Network: "lan"}}
	f.profile.Networks = map[string]profiles.Network{"lan": {Name: "lan", Mode: profiles.NAT}}
	i := f.launch(t)
	d, err := i.AttachNIC(t.Context(), profiles.NIC{Network: "lan"})
	if err != nil {
		t.Fatal(err)
	}
	if err := i.Detach(t.Context(), d.ID); err != nil || len(i.Attachments()) != 0 {
		t.Errorf("detached: %v; attached are %+v", err, i.Attachments())
	}
}

func TestMicroVMTakesNothing(t *testing.T) {
	h, p := realFixture(t)
	p.Machine.Type = profiles.MicroVM
	i := launchReal(t, h, realPlan(t, h, p), Options{Paused: true})
	if _, err := i.AttachDisk(t.Context(), images.DiskSpec{Path: p.Disks[1].Path, Format: images.FormatRaw}); err == nil {
		t.Error("a microvm took a disk")
	}
	if err := i.SetCPUs(t.Context(), 2); err == nil {
		t.Error("a microvm took a CPU")
	}
}

// A QEMU that a signal has stopped in the midst of an attachment is told what takes
// it back, is not waited for, and does it when it goes on.
func TestAttachStopped(t *testing.T) {
	h, p := realFixture(t)
	i := launchReal(t, h, realPlan(t, h, p), Options{Paused: true})
	before := nodes(t, i)
	if err := i.QMP().Run(t.Context(), "blockdev-add", map[string]string{"driver": "null-co", "node-name": "begun"}, nil); err != nil {
		t.Fatal(err)
	}
	signalQEMU(t, i, syscall.SIGSTOP)
	if err := i.undoCommand("blockdev-del", map[string]any{"node-name": "begun"})(); err != nil {
		t.Errorf("it was waited for: %v", err)
	}
	signalQEMU(t, i, syscall.SIGCONT)
	if diff := cmp.Diff(before, nodes(t, i)); diff != "" {
		t.Errorf("it left:\n%s", diff)
	}
}

// A card that QEMU does not take leaves its network again.
func TestAttachNICFails(t *testing.T) {
	h, p := realFixture(t)
	p.Networks["lan"] = profiles.Network{Name: "lan", Mode: profiles.NAT}
	net := &fakeNet{}
	h.Privileged = true
	i := launchReal(t, h, realPlan(t, h, p), Options{Paused: true, attach: net.attach})
	for network, want := range map[string]string{"lan": "netdev_add", "user": "in mode user", "wan": `defines no network "wan"`} {
		_, err := i.AttachNIC(t.Context(), profiles.NIC{Network: network})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", network, err, want)
		}
	}
	if net.open != 0 {
		t.Errorf("%d ports are still attached", net.open)
	}
	i.host.Privileged = false
	if _, err := i.AttachNIC(t.Context(), profiles.NIC{Network: "lan"}); !errors.As(err, new(*HostError)) {
		t.Errorf("without privilege: %v", err)
	}
}

// An attached card is told beside those of the profile, with the address that the
// guest is seen to use, and not waited for; once detached it is not there any more.
func TestAttachedNICIsListed(t *testing.T) {
	f := newFixture(t, "run")
	f.profile.NICs = []profiles.NIC{{Network: "lan"}}
	f.profile.Networks = map[string]profiles.Network{"lan": {Name: "lan", Mode: profiles.NAT}}
	builtin, _ := profiles.Builtin("host-only")
	addr := netip.MustParseAddr("10.70.0.20")
	watched := make(chan chan netip.Addr, 3)
	f.options.watch = func(string, netsetup.MAC, *hearing) (func(context.Context) (netip.Addr, error), error) {
		seen := make(chan netip.Addr, 1)
		watched <- seen
		return func(ctx context.Context) (netip.Addr, error) {
			select {
			case a := <-seen:
				return a, nil
			case <-ctx.Done():
				return netip.Addr{}, ctx.Err()
			}
		}, nil
	}
	i := f.launch(t)
	<-watched
	for range 2 { // the second time with the name of the first
		if d, err := i.AttachNIC(t.Context(), profiles.NIC{Network: "host-only"}); err != nil || d.ID != "nic1" {
			t.Fatalf("attached %+v, %v", d, err)
		}
		(<-watched) <- addr
		var cards []NICStatus
		for cards = i.State().Cards(); !cards[1].Seen.IsValid(); cards = i.State().Cards() {
			runtime.Gosched()
		}
		if len(cards) != 2 || cards[0].ID != "nic0" || cards[1].ID != "nic1" || cards[1].Seen != addr || cards[1].Link != "vmtfake" || cards[1].MAC == cards[0].MAC {
			t.Errorf("cards %+v", cards)
		}
		if m, err := Open(t.Context(), f.host, "web"); err != nil || len(m.Cards()) != 2 || len(i.NICs()) != 1 {
			t.Errorf("found %+v, %v", m.Cards(), err)
		}
		if got := i.State().Networks(); len(got) != 2 || got[0] != *i.plan.NICs[0].Spec || got[1] != networkSpec(builtin) {
			t.Errorf("networks %+v", got)
		}
		if err := i.Detach(t.Context(), "nic1"); err != nil {
			t.Fatal(err)
		}
		if m, err := Open(t.Context(), f.host, "web"); err != nil || len(m.Cards()) != 1 || len(m.Networks()) != 1 {
			t.Errorf("after it was detached %+v, %v", m.Cards(), err)
		}
	}
	if _, err := i.AttachNIC(t.Context(), profiles.NIC{Network: "lan"}); err != nil {
		t.Fatal(err) // and Close ends the watch of this one
	}
	if f.net.open != 2 {
		t.Errorf("%d ports are attached", f.net.open)
	}
}

func TestResize(t *testing.T) {
	h, p := realFixture(t)
	p.Machine.MaxCPUs = 3
	i := launchReal(t, h, realPlan(t, h, p), Options{Paused: true})
	for count, want := range map[int]string{4: "machine.max_cpus", 0: "it keeps the 1"} {
		if err := i.SetCPUs(t.Context(), count); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%d CPUs: %v, want %q", count, err, want)
		}
	}
	if err := i.SetCPUs(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	if err := i.SetCPUs(t.Context(), 2); err == nil || !strings.Contains(err.Error(), "under TCG") {
		t.Errorf("a CPU was taken away under TCG: %v", err)
	}
	for bytes, want := range map[int64]string{64 << 20: "machine.memory", 1 << 20: "less than"} {
		if err := i.SetMemory(t.Context(), bytes); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%d bytes: %v, want %q", bytes, err, want)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := i.SetMemory(ctx, 16<<20); err == nil || !strings.Contains(err.Error(), "driver for its balloon") {
		t.Errorf("a guest without driver gave memory back: %v", err)
	}
	if got, err := i.Resources(t.Context()); err != nil || got != (Resources{CPUs: 3, Memory: 32 << 20}) {
		t.Errorf("resources %+v, %v", got, err)
	}
}

// After the machine's end its attached cards have left, and nothing is attached.
func TestAttachAfterEnd(t *testing.T) {
	h, p := realFixture(t)
	i := launchReal(t, h, realPlan(t, h, p), Options{Paused: true})
	left := 0
	i.hot.devices = append(i.hot.devices, &hotDevice{leave: func() error { left++; return nil }})
	if err := i.Close(); err != nil || left != 1 {
		t.Errorf("left %d times, %v", left, err)
	}
	if _, err := i.AttachDisk(t.Context(), images.DiskSpec{Path: p.Disks[1].Path, Format: images.FormatRaw}); err == nil {
		t.Error("a machine that has ended took a disk")
	}
}
