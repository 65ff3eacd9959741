package integration

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
)

// damage is what may have become of a file of vmrun's state.
type damage struct {
	name string
	do   func(t *testing.T, path string)
	file bool // it is still a file, so that vmrun has to get along with it
}

func damages() []damage {
	content := func(change func(text string) string) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			t.Helper()
			text, _ := os.ReadFile(path) // a socket can't be read, and some are not there
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			write(t, path, change(string(text)))
		}
	}
	return []damage{
		{"empty", content(func(string) string { return "" }), true},
		{"torn", content(func(text string) string { return text[:len(text)/2] }), true},
		{"foreign", content(func(string) string { return `{"hello": ["world", 1, null]}` + "\n" }), true},
		{"noise", content(func(string) string { return strings.Repeat("\x00\xff\n{]", 5000) }), true},
		{"folder", func(t *testing.T, path string) {
			t.Helper()
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(mkdir(t, path), "stranger"), "stranger")
		}, false},
	}
}

// Whatever has become of a file of its state, between runs or when all was
// killed, vmrun gets along with it, or says which file is in its way; it leaves
// the host as it was, and once the file is gone all is well.
func TestDamagedState(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, "qemu", "tun", "iptables")
		h := newHost(t)
		newOutside(t, h, "10.70.0.0/24")
		before := h.state(t)
		profile := writeProfile(t, t.TempDir(), "a", haltedGuest(t)+natLAN)
		vm := h.run(t, profile, "--grace", "0s")
		vm.tells(t, joined)
		files := h.stateFiles(t)
		terminate(t, vm)
		for _, file := range files {
			for _, d := range damages() {
				h.damagedAtRest(t, before, profile, file, d)
				h.damagedAfterKill(t, before, profile, file, d)
				if t.Failed() {
					t.Fatalf("%s is %s", file, d.name)
				}
			}
		}
		h.halfWritten(t, before, files)
		t.Logf("%d cases", len(files)*len(damages()))
	})
}

// damagedAfterKill damages a file after a kill of everything. A journal of which
// the end is missing loses its last line only, and what says how a link forwarded
// nothing: gc can't know better.
func (h *host) damagedAfterKill(t *testing.T, before state, profile, file string, d damage) {
	t.Helper()
	vm := h.run(t, profile, "--grace", "0s")
	vm.tells(t, joined)
	h.killStrangers(t, before)
	vm.exit(t)
	h.gone(t, before)
	name := filepath.Base(file)
	switch {
	case name == "journal" && (d.name == "torn" || !d.file):
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		write(t, file, string(text)+`{"v":1,"seq":99,"und`)
	case d.file && !strings.HasPrefix(name, "forwarding-"):
		d.do(t, file)
	}
	h.collectGarbage(t)
	h.restored(t, before)
}

// halfWritten holds that what processes were writing when they were killed goes.
func (h *host) halfWritten(t *testing.T, before state, files []string) {
	t.Helper()
	for _, file := range files {
		switch filepath.Base(file) {
		case "journal":
			write(t, file, "")
		case "spec.json", "state.json":
			write(t, file+".new", "{")
		}
	}
	h.collectGarbage(t)
	h.restored(t, before)
}

// stateFiles are all files of a host's state while a VM runs.
func (h *host) stateFiles(t *testing.T) (files []string) {
	t.Helper()
	for _, pattern := range []string{"run/nets/*/*", "run/vms/*/*", "state/leases/*"} {
		found, err := filepath.Glob(filepath.Join(h.dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	found, err := filepath.Glob("/run/vmrun/host/*/*")
	if err != nil {
		t.Fatal(err)
	}
	if files = append(files, found...); len(files) < 12 {
		t.Fatalf("only these files of state: %v", files)
	}
	return files
}

// anyEnd is what a run tells once it is decided whether it works: "launch a: …",
// but not "launching a", which a slow one says of itself.
var anyEnd = regexp.MustCompile(`vmrun: (launch |attach|join|make|.*: joined).*\n`)

// damagedAtRest damages a file while no VM runs.
func (h *host) damagedAtRest(t *testing.T, before state, profile, file string, d damage) {
	t.Helper()
	d.do(t, file)
	vm := h.run(t, profile, "--grace", "0s")
	said, err := vm.messages.next(t.Context(), anyEnd)
	if err != nil {
		t.Fatalf("run says %q, %v", said, err)
	}
	if strings.Contains(said[0], "joined") {
		terminate(t, vm)
	} else {
		vm.ends(t, 3)
		if d.file || !strings.Contains(vm.output(), filepath.Base(file)) {
			t.Errorf("the run ends: %s", vm.output())
		}
	}
	code, out := h.vmrun(t, "gc")
	if code != 0 && (d.file || !strings.Contains(out, filepath.Base(file))) {
		t.Errorf("gc ends with %d: %s", code, out)
	}
	if !d.file {
		if err := os.RemoveAll(file); err != nil {
			t.Fatal(err)
		}
	}
	h.collectGarbage(t)
	h.restored(t, before)
	vm = h.run(t, profile, "--grace", "0s")
	vm.tells(t, joined)
	terminate(t, vm)
	h.restored(t, before)
}
