package netsetup

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// rig is a network on the fake kernel, without keeper process and services.
type rig struct {
	t    *testing.T
	dir  string
	fake *fake
	w    *effects
	j    *journal
}

func newRig(t *testing.T, b string) *rig {
	t.Helper()
	f := newFake()
	f.filter = backends[b]
	f.add(Link{Name: "br0", Kind: "bridge", Up: true, MTU: 9000})
	r := &rig{t: t, dir: t.TempDir(), fake: f}
	r.w = &effects{kernel: f, claims: &claims{origin: "boot", dir: r.dir, held: map[string]*os.File{}}}
	r.open()
	return r
}

func (r *rig) open() {
	r.t.Helper()
	j, err := openJournal(r.dir, slog.New(slog.DiscardHandler))
	if err != nil {
		r.t.Fatal(err)
	}
	r.j = j
}

// die closes what the kernel closes when a process ends.
func (r *rig) die() {
	r.j.file.Close()
	for link := range r.w.claims.held {
		r.w.claims.drop(link)
	}
}

// up brings a network and one port up.
func (r *rig) up(spec Spec) error {
	facts := testFacts()
	facts.Links, _ = r.fake.Links()
	facts.Firewall = r.fake.filter
	n := newNames("test", spec)
	if err := facts.lookAtUplink(r.fake, r.w.claims, spec, n); err != nil {
		return err
	}
	resolved, steps, err := planNetwork(spec, n, facts)
	if err != nil {
		return err
	}
	err = apply(r.w, r.j, append(steps, planPort(resolved, n, testPort())...))
	closeAll(r.w.files)
	return err
}

func TestUpAndDown(t *testing.T) {
	for name, spec := range plannedSpecs() {
		onEachBackend(t, name, func(t *testing.T, b string) {
			r := newRig(t, b)
			before := r.fake.state()
			if err := r.up(spec); err != nil {
				t.Fatal(err)
			}
			if r.fake.state() == before {
				t.Fatal("coming up changed nothing")
			}
			if err := r.j.undo(r.w); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, r.fake.state()); diff != "" {
				t.Errorf("left behind:\n%s", diff)
			}
			if err := r.j.undo(r.w); err != nil {
				t.Errorf("second undo: %v", err)
			}
		})
	}
}

// TestEveryStepFails lets each change of the host fail in turn; whatever it
// was, undoing what the journal holds gives the host back.
func TestEveryStepFails(t *testing.T) {
	for name, spec := range plannedSpecs() {
		onEachBackend(t, name, func(t *testing.T, b string) {
			cases := 0
			for i := 1; ; i++ {
				r := newRig(t, b)
				before := r.fake.state()
				r.fake.failAt = i
				err := r.up(spec)
				if err == nil {
					break
				}
				cases++
				if !errors.Is(err, errInjected) {
					t.Fatalf("change %d: %v", i, err)
				}
				r.fake.failAt = 0
				if err := r.j.undo(r.w); err != nil {
					t.Errorf("change %d: undo: %v", i, err)
				}
				if diff := cmp.Diff(before, r.fake.state()); diff != "" {
					t.Errorf("change %d failed and left:\n%s", i, diff)
				}
			}
			if cases < 4 {
				t.Errorf("only %d changes were counted", cases)
			}
		})
	}
}

// TestEveryStepKilled stops at each change, as a SIGKILL right before or right
// after it would, and lets another process undo from the file alone.
func TestEveryStepKilled(t *testing.T) {
	for name, spec := range plannedSpecs() {
		onEachBackend(t, name, func(t *testing.T, b string) {
			for i := 1; ; i++ {
				r := newRig(t, b)
				before := r.fake.state()
				r.fake.failAt = i
				err := r.up(spec)
				r.j.file.Close()
				r.fake.failAt = 0
				r.die()
				r.open()
				if err := r.j.undo(r.w); err != nil {
					t.Errorf("%s: killed at change %d: %v", name, i, err)
				}
				if diff := cmp.Diff(before, r.fake.state()); diff != "" {
					t.Errorf("%s: killed at change %d, left:\n%s", name, i, diff)
				}
				if err == nil {
					break
				}
			}
		})
	}
}

// TestEveryUndoFails lets each undo fail in turn: the others are done all the
// same, the failure is told, and a second attempt finishes the job.
func TestEveryUndoFails(t *testing.T) {
	for name, spec := range plannedSpecs() {
		onEachBackend(t, name, func(t *testing.T, b string) {
			for i := 1; ; i++ {
				r := newRig(t, b)
				before := r.fake.state()
				if err := r.up(spec); err != nil {
					t.Fatal(err)
				}
				r.fake.changes, r.fake.failAt = 0, i
				err := r.j.undo(r.w)
				if err == nil {
					break
				}
				if !errors.Is(err, errInjected) {
					t.Fatal(err)
				}
				r.fake.failAt = 0
				if err := r.j.undo(r.w); err != nil {
					t.Errorf("%s: second undo after failure %d: %v", name, i, err)
				}
				if diff := cmp.Diff(before, r.fake.state()); diff != "" {
					t.Errorf("%s: undo %d failed once, left:\n%s", name, i, diff)
				}
			}
		})
	}
}

func TestForwardingIsGivenBackByTheLast(t *testing.T) {
	f := newFake()
	dir := t.TempDir()
	a := &claims{origin: "boot", dir: dir, held: map[string]*os.File{}}
	b := &claims{origin: "boot", dir: dir, held: map[string]*os.File{}}
	for _, c := range []*claims{a, b} {
		if err := c.forward(f, "eth1"); err != nil {
			t.Fatal(err)
		}
	}
	value := func() string { return f.sysctls[forwardingKey("eth1")] }
	if err := a.unforward(f, "eth1"); err != nil || value() != "1" {
		t.Fatalf("after the first left: forwarding %s, %v; want 1", value(), err)
	}
	if err := b.unforward(f, "eth1"); err != nil || value() != "0" {
		t.Fatalf("after the last left: forwarding %s, %v; want 0", value(), err)
	}
}

func TestForwardingOfAnAdministratorStays(t *testing.T) {
	f := newFake()
	c := &claims{origin: "boot", dir: t.TempDir(), held: map[string]*os.File{}}
	f.sysctls[forwardingKey("eth1")] = "1"
	if err := c.forward(f, "eth1"); err != nil {
		t.Fatal(err)
	}
	if err := c.unforward(f, "eth1"); err != nil {
		t.Fatal(err)
	}
	if got := f.sysctls[forwardingKey("eth1")]; got != "1" {
		t.Errorf("forwarding was 1 before us and is %s now", got)
	}
}

// TestForwardingOfANewRouterStays: Docker's start sets ip_forward, and with it
// every link; taking a link's part of it away would cut containers off.
func TestForwardingOfANewRouterStays(t *testing.T) {
	f := newFake()
	c := &claims{origin: "boot", dir: t.TempDir(), held: map[string]*os.File{}}
	if err := c.forward(f, "eth1"); err != nil {
		t.Fatal(err)
	}
	f.sysctls["net/ipv4/ip_forward"] = "1"
	if err := c.unforward(f, "eth1"); err != nil {
		t.Fatal(err)
	}
	if got := f.sysctls[forwardingKey("eth1")]; got != "1" {
		t.Errorf("the host was made a router and eth1 forwards no more (%s)", got)
	}
}

// TestForwardingFoundElsewhereIsVoid: what was found in another network namespace,
// or before a boot, is no state to go back to. Earlier versions named no namespace.
func TestForwardingFoundElsewhereIsVoid(t *testing.T) {
	for boot, want := range map[string]string{"boot/1": "0", "boot": "0", "boot/2": "1", "earlier/1": "1"} {
		f, dir := newFake(), t.TempDir()
		killed := &claims{origin: boot, dir: dir, held: map[string]*os.File{}}
		if err := killed.forward(f, "eth1"); err != nil {
			t.Fatal(err)
		}
		killed.drop("eth1")
		next := &claims{origin: "boot/1", dir: dir, held: map[string]*os.File{}}
		if swept, err := next.sweep(f, "eth1"); err != nil || swept != (want == "0") {
			t.Errorf("%s: swept %v, %v", boot, swept, err)
		}
		if got := f.sysctls[forwardingKey("eth1")]; got != want {
			t.Errorf("%s: forwarding %s, want %s", boot, got, want)
		}
	}
}

func TestJournalSurvives(t *testing.T) {
	valid := `{"v":1,"seq":1,"undo":{"op":"del-links","arg":{"group":1,"names":["vmrx"]}}}` + "\n"
	tests := []struct {
		name, text string
		entries    int
		refuses    string // who wrote it; "": it is read
		damaged    bool   // it may have listed more
	}{
		{"empty", "", 0, "", true},
		{"torn", valid + `{"v":1,"seq":2,"und`, 1, "", false},
		{"torn before the next keeper", `{"v":1,"seq":2,"und` + "\n" + valid, 1, "", false},
		{"torn at once", valid + "{", 1, "", false},
		{"crossed out", valid + `{"v":1,"seq":2,"done":1}` + "\n", 0, "", false},
		{"beginning lost", strings.Replace(valid, `"seq":1`, `"seq":2`, 1), 1, "", true},
		{"middle lost", valid + strings.Replace(valid, `"seq":1`, `"seq":3`, 1), 2, "", true},
		{"written by three", valid + `{"v":1,"seq":2,"done":1}` + "\n" + strings.Replace(valid, `"seq":1`, `"seq":2`, 1) + `{"v":1,"seq":3,"un`, 1, "", false},
		{"binary", "\x00\x01\x02\n" + valid, 1, "", true},
		{"foreign", `{"hello": "world"}` + "\n" + valid, 1, "", true},
		{"later version", `{"v":2,"by":"vmrun v9.9","seq":1,"undo":{"op":"del-links","arg":{}}}` + "\n", 0, "vmrun v9.9", false},
		{"unknown operation", `{"v":1,"by":"vmrun v9.9","seq":1,"undo":{"op":"rm-rf","arg":{}}}` + "\n", 0, "vmrun v9.9", false},
		{"unknown writer", `{"v":2,"seq":1,"undo":{"op":"del-links","arg":{}}}` + "\n", 0, "another version of vmrun", false},
	}
	for _, tt := range tests {
		dir := t.TempDir()
		for name, text := range map[string]string{"journal": tt.text, specName: "{}"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		j, err := openJournal(dir, slog.New(slog.DiscardHandler))
		if (err != nil) != (tt.refuses != "") || err != nil && !strings.Contains(err.Error(), "written by "+tt.refuses) {
			t.Errorf("%s: error %v, want one that names %q", tt.name, err, tt.refuses)
			continue
		}
		if err == nil && len(j.entries) != tt.entries {
			t.Errorf("%s: %d entries, want %d", tt.name, len(j.entries), tt.entries)
		}
		if err == nil && j.damaged != tt.damaged {
			t.Errorf("%s: damaged %v", tt.name, j.damaged)
		}
	}
}

// TestTornLineDoesNotSwallowTheNext: what is written after a crash is read.
func TestTornLineDoesNotSwallowTheNext(t *testing.T) {
	r := newRig(t, "iptables")
	if _, err := r.j.file.WriteString(`{"v":1,"seq":9,"un`); err != nil {
		t.Fatal(err)
	}
	r.j.file.Close()
	r.open()
	if err := r.j.record(delLinks{Group: 1, Names: []string{"vmrx"}}); err != nil {
		t.Fatal(err)
	}
	r.j.file.Close()
	r.open()
	if len(r.j.entries) != 1 {
		t.Errorf("%d entries, want 1", len(r.j.entries))
	}
}

// TestFailedWriteDoesNotSwallowTheNext: nor does what a full disk has cut off.
func TestFailedWriteDoesNotSwallowTheNext(t *testing.T) {
	r := newRig(t, "iptables")
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	file := r.j.file
	r.j.file = full
	if err := r.j.record(delLinks{Group: 1, Names: []string{"vmrx"}}); err == nil {
		t.Error("a full disk took an entry")
	}
	r.j.file = file
	if _, err := file.WriteString(`{"v":1,"seq":1,"un`); err != nil {
		t.Fatal(err)
	}
	if err := r.j.record(delLinks{Group: 1, Names: []string{"vmry"}}); err != nil {
		t.Fatal(err)
	}
	file.Close()
	r.open()
	if len(r.j.entries) != 1 || r.j.damaged {
		t.Errorf("%d entries, want 1; damaged: %v", len(r.j.entries), r.j.damaged)
	}
}

// TestJournalSaysWhoWroteIt: a later vmrun that can't read it names its writer.
func TestJournalSaysWhoWroteIt(t *testing.T) {
	r := newRig(t, "nftables")
	r.j.by = "vmrun v1.2.3"
	if err := r.j.record(delLinks{Group: 1, Names: []string{"vmrx"}}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(r.j.path)
	if err != nil {
		t.Fatal(err)
	}
	later := strings.Replace(string(text), `{"v":1,`, `{"v":2,`, 1)
	if err := os.WriteFile(r.j.path, []byte(later), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openJournal(r.dir, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "written by vmrun v1.2.3") {
		t.Errorf("error %v does not name the writer", err)
	}
}
