package vm

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmrun/vmrun/profiles"
	"github.com/vmrun/vmrun/vm/qemu"
)

// A restore that a network refuses costs nothing: kept disks hold what was written
// since, and the next one finds all as it was.
func TestSnapshotNetworkRefuses(t *testing.T) {
	h, p := realFixture(t)
	h.Privileged = true
	p.Networks["lan"] = profiles.Network{Name: "lan", Mode: profiles.NAT}
	plan := realPlan(t, h, p)
	i := launchReal(t, h, plan, Options{})
	scribble(t, i, 1)
	s, err := i.Save(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	scribble(t, i, 2)
	if err := i.Close(); err != nil {
		t.Fatal(err)
	}
	kept := p.Disks[1].Path
	since, err := os.ReadFile(kept)
	if err != nil {
		t.Fatal(err)
	}
	refused, err := s.RestorePlan(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	nic, err := newNIC(p.Name, 1, profiles.NIC{Network: "lan"}, p.Networks["lan"], h)
	if err != nil {
		t.Fatal(err)
	}
	refused.NICs = append(slices.Clone(refused.NICs), nic)
	if i, err := Launch(t.Context(), refused, h, Options{attach: (&fakeNet{refuse: 1}).attach}); err == nil {
		i.Close()
		t.Error("the network took it")
	} else if !strings.Contains(err.Error(), "the fake refuses") {
		t.Errorf("refused: %v", err)
	}
	if now, err := os.ReadFile(kept); err != nil || !bytes.Equal(now, since) {
		t.Errorf("the kept disk was changed, %v", err)
	}
	checkScribble(t, restore(t, h, p.Name, "one"), 1)
}

// What is not as it was is found before anything is started. The machine type can't be
// another one: it is the snapshot's.
func TestSnapshotRefused(t *testing.T) {
	h, p := realFixture(t)
	i := launchReal(t, h, realPlan(t, h, p), Options{})
	s, err := i.Save(t.Context(), "one")
	if err = errors.Join(err, i.Close()); err != nil {
		t.Fatal(err)
	}
	if program, err := newBase(h.QEMU); err != nil || s.Program != program {
		t.Errorf("its QEMU is %v, want %v, %v", s.Program, program, err)
	}
	good, err := os.ReadFile(filepath.Join(s.dir, snapshotFile))
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		change func(*Snapshot)
		want   string
	}{
		"another QEMU":   {func(s *Snapshot) { s.QEMU, s.Program.Size = "6.2.0", 1 }, "it was made by QEMU 6.2.0"},
		"QEMU replaced":  {func(s *Snapshot) { s.Program.Modified = time.Time{} }, ""},
		"QEMU unseen":    {func(s *Snapshot) { s.Program = Base{} }, ""},
		"another CPU":    {func(s *Snapshot) { s.Plan.Accel, s.CPU = "kvm", "a 6502" }, "on another CPU (a 6502)"},
		"changed image":  {func(s *Snapshot) { s.Bases[0].Size++ }, "has changed since"},
		"image gone":     {func(s *Snapshot) { s.Bases[0].Path = "/nonexistent" }, "has changed since"},
		"newer format":   {func(s *Snapshot) { s.Version = 99 }, "version 99 of the format"},
		"older format":   {func(s *Snapshot) { s.Version = 1 }, ""},
		"kernel gone":    {func(s *Snapshot) { s.Plan.Kernel = "/nonexistent" }, "/nonexistent"},
		"another type":   {func(s *Snapshot) { s.Plan.Machine = qemu.PC }, ""},
		"another's name": {func(s *Snapshot) { s.VM = "other" }, "it is snapshot one of other"},
	} {
		var changed Snapshot
		if err := json.Unmarshal(good, &changed); err != nil {
			t.Fatal(err)
		}
		tt.change(&changed)
		text, err := json.Marshal(changed)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(s.dir, snapshotFile), text, 0o600); err != nil {
			t.Fatal(err)
		}
		loaded, err := LoadSnapshot(h, p.Name, "one")
		var plan *Plan
		if err == nil {
			plan, err = loaded.RestorePlan(t.Context(), h)
		}
		if err == nil && plan.Machine != changed.Plan.Machine {
			t.Errorf("%s: it goes on as a %s, and was a %s", name, plan.Machine, changed.Plan.Machine)
		}
		if want := tt.want; err == nil != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
}

// Memory that is not a machine's is told as such, and nothing is left of the
// launch.
func TestSnapshotTorn(t *testing.T) {
	h, p := realFixture(t)
	i := launchReal(t, h, realPlan(t, h, p), Options{})
	s, err := i.Save(t.Context(), "one")
	if err = errors.Join(err, i.Close()); err != nil {
		t.Fatal(err)
	}
	memory := filepath.Join(s.dir, memoryFile)
	fi, err := os.Stat(memory)
	if err != nil {
		t.Fatal(err)
	}
	for name, size := range map[string]int64{"empty": 0, "half": fi.Size() / 2} {
		if err := os.Truncate(memory, size); err != nil {
			t.Fatal(err)
		}
		plan, err := s.RestorePlan(t.Context(), h)
		if err != nil {
			t.Fatal(err)
		}
		if i, err := Launch(t.Context(), plan, h, Options{}); err == nil {
			i.Close()
			t.Errorf("%s: a machine was made of it", name)
		} else if !strings.Contains(err.Error(), "load memory") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
