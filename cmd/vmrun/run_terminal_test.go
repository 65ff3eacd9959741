package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestRunOnTerminal is a person at a terminal.
func TestRunOnTerminal(t *testing.T) {
	s := startOnTerminal(t, "serve")
	s.shows("fake guest")
	s.types("a\x03\x1a", "<97><3><26>") // ctrl-C and ctrl-Z are the guest's
	s.types("\x1d?", "ctrl-] .       end the VM\r\n")
	s.types("\x1d\x1d", "<29>")
	s.types("\x1d.", "\x1b[?25h")
	if code := s.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	s.isUsable()
}

// TestTerminalAfterEnd checks that the terminal is as before, whatever ended
// vmrun or the VM.
func TestTerminalAfterEnd(t *testing.T) {
	for _, tt := range []struct {
		acts   string
		signal unix.Signal // sent once the guest has the terminal; 0: none
		code   int
	}{
		{"shutdown", 0, 0},
		{"panic", 0, 5},
		{"dead", 0, 4},
		{"crash", 0, 4},
		{"serve", unix.SIGTERM, 143},
		{"serve", unix.SIGHUP, 129},
		{"serve", unix.SIGINT, 130},
		{"serve", unix.SIGQUIT, 131},
		{"serve", unix.SIGABRT, 134},
		{"serve", unix.SIGKILL, -1},
	} {
		t.Run(tt.acts+" "+unix.SignalName(tt.signal), func(t *testing.T) {
			s := startOnTerminal(t, tt.acts)
			if tt.signal != 0 {
				s.types("a", "<97>")
				s.signal(tt.signal)
			}
			if code := s.wait(); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			if tt.code < 0 {
				s.shows("\x1b[?25h") // by the guard
			}
			s.isUsable()
		})
	}
}

// TestTerminalAfterTimeout is the end that nobody is there for.
func TestTerminalAfterTimeout(t *testing.T) {
	s := startOnTerminal(t, "serve", "--timeout=500ms")
	if code := s.wait(); code != 124 {
		t.Errorf("exit code %d, want 124", code)
	}
	s.isUsable()
}

// TestRunTerminalLost closes the window: the VM ends with it.
func TestRunTerminalLost(t *testing.T) {
	profile, env := fakeProfile(t, "serve")
	s := onTerminal(t, env, "run", profile)
	s.types("a", "<97>")
	s.hangUp()
	if code := s.wait(); code != 129 {
		t.Errorf("exit code %d, want 129", code)
	}
	if got := vmrun(t, env, "ps", "-a", "-q"); got != "" {
		t.Errorf("there is still %q", got)
	}
}

// TestSuspend stops vmrun as a shell's job and continues it.
func TestSuspend(t *testing.T) {
	s := startOnTerminal(t, "serve")
	s.shows("fake guest")
	s.types("a", "<97>")
	s.signal(unix.SIGTSTP)
	var status unix.WaitStatus
	if _, err := unix.Wait4(s.cmd.Process.Pid, &status, unix.WUNTRACED, nil); err != nil || !status.Stopped() {
		t.Fatalf("not stopped: %v, %#x", err, status)
	}
	s.isUsable()
	s.signal(unix.SIGCONT)
	s.types("b", "<98>")
	s.types("q", "\x1b[?25h")
	if code := s.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	s.isUsable()
}

// session is a vmrun with a terminal of its own.
type session struct {
	t         *testing.T
	cmd       *exec.Cmd
	user, tty *os.File
	before    *unix.Termios
	output    chan string
	seen      string
}

// startOnTerminal runs a VM whose fake QEMU acts as told.
func startOnTerminal(t *testing.T, acts string, flags ...string) *session {
	t.Helper()
	profile, env := fakeProfile(t, acts)
	return onTerminal(t, env, append([]string{"run", profile}, flags...)...)
}

// fakeProfile writes the profile of a VM whose fake QEMU acts as told, and gives
// it folders of its own.
func fakeProfile(t *testing.T, acts string) (profile string, env []string) {
	t.Helper()
	dir := t.TempDir()
	profile = filepath.Join(dir, "vm.toml")
	text := "machine.accel = \"tcg\"\nboot.kernel = \"vmlinuz\"\nboot.cmdline = \"fake=" + acts + "\"\n"
	for file, text := range map[string]string{profile: text, filepath.Join(dir, "vmlinuz"): ""} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return profile, append(os.Environ(), "SUDO_UID=", "VMRUN_RUNTIME_DIR="+filepath.Join(dir, "run"),
		"VMRUN_STATE_DIR="+filepath.Join(dir, "state"), "VMRUN_CACHE_DIR="+filepath.Join(dir, "cache"))
}

// onTerminal runs vmrun as a shell would.
func onTerminal(t *testing.T, env []string, args ...string) *session {
	t.Helper()
	user, tty := openPTY(t)
	cmd := exec.Command("vmrun", args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.Env = env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	s := &session{t: t, cmd: cmd, user: user, tty: tty, before: settings(t, tty), output: make(chan string, 100)}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	hangs := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() }) // the exit code shows it
	t.Cleanup(func() { hangs.Stop(); cmd.Process.Kill() })
	go s.read()
	return s
}

// read passes on what is shown, until the terminal is closed.
func (s *session) read() {
	defer close(s.output)
	buf := make([]byte, 4096)
	for {
		n, err := s.user.Read(buf)
		if err != nil {
			return
		}
		s.output <- string(buf[:n])
	}
}

// shows waits until the text is on the screen.
func (s *session) shows(text string) {
	s.t.Helper()
	timeout := time.After(50 * time.Second)
	for !strings.Contains(s.seen, text) {
		select {
		case more := <-s.output:
			s.seen += more
		case <-timeout:
			s.t.Fatalf("no %q in %q", text, s.seen)
		}
	}
	_, s.seen, _ = strings.Cut(s.seen, text)
}

// types types keys and waits for what they bring about.
func (s *session) types(keys, shown string) {
	s.t.Helper()
	if _, err := s.user.WriteString(keys); err != nil {
		s.t.Fatal(err)
	}
	s.shows(shown)
}

func (s *session) signal(sig os.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

// hangUp ends the terminal, as closing its window does.
func (s *session) hangUp() {
	s.t.Helper()
	if err := s.user.Close(); err != nil {
		s.t.Fatal(err)
	}
}

// wait returns the exit code, or -1 after a deadly signal. It takes what is
// shown meanwhile, for a terminal that nobody reads holds the writer up.
func (s *session) wait() int {
	s.t.Helper()
	ended, output := make(chan error), s.output
	go func() { ended <- s.cmd.Wait() }()
	for {
		select {
		case more, ok := <-output:
			if !ok {
				output = nil // of a terminal that is no more
			}
			s.seen += more
		case <-ended:
			return s.cmd.ProcessState.ExitCode()
		}
	}
}

// isUsable checks that the terminal is as it was before.
func (s *session) isUsable() {
	s.t.Helper()
	if got := settings(s.t, s.tty); *got != *s.before {
		s.t.Errorf("settings:\n%+v\nbefore:\n%+v\nshown: %q", got, s.before, s.seen)
	}
}
