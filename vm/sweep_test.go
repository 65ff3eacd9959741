package vm

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Sweep forgets the machines of killed launches, and no others.
func TestSweep(t *testing.T) {
	f := newFixture(t, "serve")
	if lines, err := Sweep(f.host); len(lines) > 0 || err != nil {
		t.Errorf("on a fresh host: %q, %v", lines, err)
	}
	f.launch(t)
	vms := filepath.Join(f.host.Dirs.Runtime, "vms")
	for _, file := range []string{"killed/state.json", "killed/lock", "half/state.json.new", "ended/lock", "ended/qemu.log"} {
		path := filepath.Join(vms, file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"virtual machine half: removed its state", "virtual machine killed: removed its state"}
	for range 2 {
		lines, err := Sweep(f.host)
		if diff := cmp.Diff(want, lines); diff != "" || err != nil {
			t.Errorf("swept (%v; -want +got):\n%s", err, diff)
		}
		want = nil
	}
	for file, stays := range map[string]bool{
		"web/state.json": true, "killed/lock": true, "ended/qemu.log": true, "killed/state.json": false, "half/state.json.new": false,
	} {
		if _, err := os.Stat(filepath.Join(vms, file)); (err == nil) != stays {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// A folder that others can write to may be full of links to anywhere.
func TestSweepForeignFolder(t *testing.T) {
	f := newFixture(t, "serve")
	state := filepath.Join(f.host.Dirs.Runtime, "vms/web/state.json")
	err := errors.Join(os.MkdirAll(filepath.Dir(state), 0o700), os.WriteFile(state, nil, 0o600), os.Chmod(f.host.Dirs.Runtime, 0o777))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Sweep(f.host); err == nil {
		t.Error("swept it")
	}
	if _, err := os.Stat(state); err != nil {
		t.Error(err)
	}
}
