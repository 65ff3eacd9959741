package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/control"
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

// TestFailsAfterSupervisor has a client hold up the end of a supervisor whose VM
// has not become ready: run -d does not exit before the process is gone.
func TestFailsAfterSupervisor(t *testing.T) {
	for _, notify := range []bool{false, true} {
		profile, env := fakeProfile(t, "serve")
		cmd := exec.Command("vmrun", "run", "-d", "--wait", "log=never", profile)
		cmd.Env = env
		if notify {
			socket := filepath.Join(t.TempDir(), "notify")
			listenAsSystemd(t, socket)
			cmd.Args = append(cmd.Args, "--notify")
			cmd.Env = append(env, "NOTIFY_SOCKET="+socket)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		m := awaitRunning(t, filepath.Join(filepath.Dir(profile), "run"))
		supervisor, err := unix.PidfdOpen(m.Supervisor, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(supervisor)
		left := make(chan bool, 1) // whether the supervisor is there when run has ended
		go func() {
			cmd.Wait()
			left <- !hasEnded(supervisor)
		}()
		powerOffHeld(t, m, func() {
			// It takes longer than what is left of a run that does not wait.
			for started := time.Now(); len(left) == 0 && time.Since(started) < time.Second; {
				vmrun(t, env, "version")
			}
		})
		if <-left {
			t.Errorf("notify %v: run ended before the supervisor", notify)
		}
		if code := cmd.ProcessState.ExitCode(); code != exitTimeout {
			t.Errorf("notify %v: exit code %d", notify, code)
		}
	}
}

// awaitRunning waits until the VM of fakeProfile runs.
func awaitRunning(t *testing.T, runtime string) (m vm.Machine) {
	t.Helper()
	for m.Phase != vm.Running {
		var err error
		m, err = vm.Open(t.Context(), vm.Host{Dirs: vm.Dirs{Runtime: runtime}}, "vm")
		if _, absent := errors.AsType[*vm.UnknownError](err); err != nil && !absent {
			t.Fatal(err)
		}
	}
	return m
}

// powerOffHeld has the guest power off, and then does something while the
// supervisor, which has said how the VM ended, waits for a client to take more
// output than fits into a connection.
func powerOffHeld(t *testing.T, m vm.Machine, do func()) {
	t.Helper()
	hold, err := control.OpenConsole(t.Context(), m, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	ended := make(chan error, 1)
	go func() {
		_, err := control.Wait(t.Context(), m)
		ended <- err
	}()
	if _, err := hold.Write(append(bytes.Repeat([]byte("a"), 40<<10), 'q')); err != nil { // each becomes <97>
		t.Fatal(err)
	}
	if err := <-ended; err != nil && !control.HasEnded(err) {
		t.Fatal(err)
	}
	do()
}

// hasEnded tells whether the process of a pidfd has.
func hasEnded(pidfd int) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0)
	return n > 0 && err == nil
}
