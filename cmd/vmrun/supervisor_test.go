package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSupervisorLog has VMs in the background one after another under a name: their
// supervisors' log goes on, and begins anew when it is large.
func TestSupervisorLog(t *testing.T) {
	profile, env := fakeProfile(t, "serve")
	log := filepath.Join(filepath.Dir(profile), "run", "vms", "vm", supervisorLog)
	next := func() []byte {
		t.Helper()
		vmrun(t, env, "run", "-d", profile)
		pid, err := strconv.Atoi(strings.TrimSpace(vmrun(t, env, "ps", "--format", "{{.Supervisor}}")))
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(pid, unix.SIGTERM); err != nil { // which it writes down
			t.Fatal(err)
		}
		wait := exec.Command("vmrun", "wait", "vm")
		wait.Env = env
		_ = wait.Run() // it may have ended before
		text, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	first := next()
	if !bytes.Contains(first, []byte("SIGTERM")) {
		t.Fatalf("the log says %q", first)
	}
	if text := next(); !bytes.HasPrefix(text, first) || len(text) == len(first) {
		t.Errorf("the second log says %q, the first %q", text, first)
	}
	if err := os.WriteFile(log, []byte(strings.Repeat("old\n", maxSupervisorLog/4+1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if text := next(); len(text) == 0 || len(text) > 1<<10 || bytes.Contains(text, []byte("old\n")) {
		t.Errorf("a large log becomes one of %d bytes, %.1000q", len(text), text)
	}
}
