package main

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestExecOnTerminal has a person use a shell in the fake guest.
func TestExecOnTerminal(t *testing.T) {
	env := background(t, "serve,agent")
	s := onTerminal(t, env, "exec", "-t", "--env", "PS1=ready:", "vm", "--", "sh", "-i")
	s.shows("ready:")
	s.types("tty | sed s/pts/PTS/\n", "/dev/PTS/")
	if err := unix.IoctlSetWinsize(int(s.tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 41, Col: 97}); err != nil {
		t.Fatal(err)
	}
	s.types("until stty size | grep -q '^41 97$'; do sleep 0.1; done; echo res''ized\n", "resized")
	s.types("sh -c 'echo sleeps $((1+1)); exec sleep 1000'\n", "sleeps 2")
	s.types("\x03", "ready:") // ctrl-C is the command's
	s.types("\x1d?", "ctrl-] .       end the command\r\n")
	s.types("exit 3\n", "\x1b[?25h")
	if code := s.wait(); code != 3 {
		t.Errorf("exit code %d", code)
	}
	s.isUsable()
}

// TestExecEscape checks that the terminal is as before and that the command is
// gone, whatever ends exec.
func TestExecEscape(t *testing.T) {
	env := background(t, "serve,agent")
	for name, tt := range map[string]struct {
		end  func(*session)
		code int
	}{
		"escape":  {func(s *session) { s.types("\x1d.", "") }, 125},
		"SIGKILL": {func(s *session) { s.signal(unix.SIGKILL) }, -1},
	} {
		t.Run(name, func(t *testing.T) {
			ended := filepath.Join(t.TempDir(), "ended")
			s := onTerminal(t, env, "exec", "-t", "vm", "--", "sh", "-c", "trap 'echo >"+ended+"; exit' HUP; echo ready; while :; do sleep 0.1; done")
			s.shows("ready")
			tt.end(s)
			if code := s.wait(); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			s.shows("\x1b[?25h")
			s.isUsable()
			vmrun(t, env, "exec", "--timeout", "10s", "vm", "--", "sh", "-c", "until [ -e "+ended+" ]; do sleep 0.1; done")
		})
	}
}
