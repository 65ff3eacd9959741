package main

import (
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// background starts a VM in the background, which is killed at the test's end,
// and returns what further commands need.
func background(t *testing.T, acts string) (env []string) {
	t.Helper()
	profile, env := fakeProfile(t, acts)
	vmrun(t, env, "run", "-d", "--wait", "log=guest", profile)
	t.Cleanup(func() { vmrun(t, env, "kill", "--all") })
	return env
}

// vmrun runs a command that has to succeed.
func vmrun(t *testing.T, env []string, args ...string) string {
	t.Helper()
	cmd := exec.Command("vmrun", args...)
	cmd.Env = env
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("vmrun %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestConsoleOnTerminal has two people at terminals look at one VM.
func TestConsoleOnTerminal(t *testing.T) {
	env := background(t, "serve")
	one := onTerminal(t, env, "console", "vm")
	one.shows("ctrl-] . detaches")
	one.shows("fake guest")
	two := onTerminal(t, env, "console", "vm")
	two.shows("fake guest")
	one.types("a\x03\x1a", "<97><3><26>") // ctrl-C and ctrl-Z are the guest's
	two.shows("<97><3><26>")
	two.types("b", "<98>")
	one.shows("<98>")
	one.types("\x1d?", "ctrl-] .       detach\r\n")
	one.types("\x1d.", "\x1b[?25h")
	if code := one.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	one.isUsable()
	// The guest sees nothing of it, and who comes back finds the last lines.
	two.types("c", "<99>")
	again := onTerminal(t, env, "console", "vm")
	again.shows("fake guest")
	again.shows("<98><99>")
	again.types("q", "vm has ended")
	two.shows("vm has ended")
	for _, s := range []*session{two, again} {
		if code := s.wait(); code != 0 {
			t.Errorf("exit code %d", code)
		}
		s.isUsable()
	}
}

// TestConsoleSize has a guest that knows how large the terminal is: that of run,
// then of whoever attaches, and of several the one that was changed last.
func TestConsoleSize(t *testing.T) {
	_, guest := openPTY(t)
	profile, env := fakeProfile(t, "serve,agent,tty="+guest.Name())
	resize := func(s *session, rows, cols uint16) {
		t.Helper()
		if err := unix.IoctlSetWinsize(int(s.tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}); err != nil {
			t.Fatal(err)
		}
	}
	becomes := func(rows, cols uint16) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
			size, err := unix.IoctlGetWinsize(int(guest.Fd()), unix.TIOCGWINSZ)
			if err != nil {
				t.Fatal(err)
			}
			if size.Row == rows && size.Col == cols {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("the guest's terminal has %d rows and %d columns, want %d and %d", size.Row, size.Col, rows, cols)
			}
		}
	}
	run := onTerminal(t, env, "run", profile)
	run.shows("fake guest")
	resize(run, 41, 97)
	becomes(41, 97)
	one := onTerminal(t, env, "console", "vm")
	one.shows("fake guest")
	becomes(41, 97) // one's has none
	resize(one, 24, 80)
	becomes(24, 80)
	resize(run, 50, 132)
	becomes(50, 132)
	one.types("\x1d.", "\x1b[?25h")
	becomes(50, 132)
	run.types("q", "\x1b[?25h")
	for _, s := range []*session{one, run} {
		if code := s.wait(); code != 0 {
			t.Errorf("exit code %d", code)
		}
	}
}

// TestConsoleAfterSignal checks that the terminal is as before, whatever ended
// the command, and that the VM goes on.
func TestConsoleAfterSignal(t *testing.T) {
	env := background(t, "serve")
	for signal, code := range map[unix.Signal]int{unix.SIGTERM: 143, unix.SIGHUP: 129, unix.SIGKILL: -1} {
		s := onTerminal(t, env, "console", "vm")
		s.types("a", "<97>")
		s.signal(signal)
		if got := s.wait(); got != code {
			t.Errorf("%v: exit code %d, want %d", signal, got, code)
		}
		s.shows("\x1b[?25h") // by the guard, where it has to be
		s.isUsable()
	}
	if got := vmrun(t, env, "ps", "-q"); got != "vm\n" {
		t.Errorf("there is %q", got)
	}
}

// TestTerminalLost closes the window in which something looks at a VM: that ends,
// and the VM goes on.
func TestTerminalLost(t *testing.T) {
	env := append(background(t, "serve,agent"), "TERM=xterm")
	ended, deaf := filepath.Join(t.TempDir(), "ended"), filepath.Join(t.TempDir(), "pid")
	for _, tt := range []struct {
		name, shows string
		args        []string
	}{
		{"console", "fake guest", []string{"console", "vm"}},
		{"top", "VMs: 1", []string{"top"}},
		{"exec", "ready", []string{"exec", "-t", "vm", "--", "sh", "-c", "trap 'echo >" + ended + "; exit' HUP; echo ready; while :; do sleep 0.1; done"}},
		{"deaf exec", "ready", []string{"exec", "-t", "vm", "--", "sh", "-c", "trap '' HUP; echo $$ >" + deaf + "; echo ready; exec sleep 1000"}},
		{"qmp", "vm> ", []string{"qmp", "-i", "vm"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := onTerminal(t, env, tt.args...)
			s.shows(tt.shows)
			s.hangUp()
			code := s.wait()
			if status := s.cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signaled() {
				code = 128 + int(status.Signal()) // as a shell has it
			}
			if code != 129 {
				t.Errorf("exit code %d, want 129", code)
			}
			if got := vmrun(t, env, "ps", "--format", "{{.Name}} {{.State}}"); got != "vm running\n" {
				t.Errorf("there is %q", got)
			}
		})
	}
	vmrun(t, env, "exec", "--timeout", "1m", "vm", "--", "sh", "-c", "until [ -e "+ended+" ]; do sleep 0.1; done; kill -KILL $(cat "+deaf+")")
}

// A signal ends top, and the terminal is as before.
func TestTopAfterSignal(t *testing.T) {
	env := append(background(t, "serve"), "TERM=xterm")
	for signal, code := range map[unix.Signal]int{unix.SIGINT: 130, unix.SIGTERM: 143} {
		s := onTerminal(t, env, "top")
		s.shows("VMs: 1")
		s.signal(signal)
		if got := s.wait(); got != code {
			t.Errorf("%v: exit code %d, want %d", signal, got, code)
		}
		s.isUsable()
	}
}

// TestQMPOnTerminal is a person at the prompt.
func TestQMPOnTerminal(t *testing.T) {
	env := background(t, "serve")
	s := onTerminal(t, env, "qmp", "-i", "vm")
	s.shows("vm> ")
	s.types("st\t", "op ")
	s.types("\r", "STOP")
	s.types("set\t", "-action ")
	s.types("re\t", "boot=")
	s.types("r\t", "eset ")
	s.types("\r", `"status": "paused"`)
	s.types("nonsense\r", "CommandNotFound")
	s.types("s\t\t", "set-action  stop")
	if got := vmrun(t, env, "ps", "--format", "{{.State}}"); got != "paused\n" {
		t.Errorf("the VM is %q", got)
	}
	s.types("\x15\x04", "\x1b[?25h") // clear the line, end of input
	if code := s.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	s.isUsable()
}
