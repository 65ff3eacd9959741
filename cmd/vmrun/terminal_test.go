package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTerminal(t *testing.T) {
	user, tty := openPTY(t)
	before := settings(t, tty)
	term := openTestTerminal(t, tty)
	if !isRaw(settings(t, tty)) {
		t.Error("the terminal isn't raw")
	}
	var messages bytes.Buffer
	w := &lineWriter{w: &messages}
	w.Write([]byte("zero\n"))
	w.terminal.Store(term)
	w.Write([]byte("one\ntwo\n"))

	if err := term.restore(); err != nil {
		t.Fatal(err)
	}
	if got := settings(t, tty); *got != *before {
		t.Errorf("settings after restore:\n%+v\nbefore:\n%+v", got, before)
	}
	if shown := readShown(t, user); !strings.Contains(shown, "\x1b[?25h") {
		t.Errorf("modes are not reset: %q", shown)
	}
	w.Write([]byte("three\n"))
	if got, want := messages.String(), "zero\none\r\ntwo\r\nthree\n"; got != want {
		t.Errorf("messages %q, want %q", got, want)
	}

	if err := term.makeRaw(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := term.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := term.makeRaw(); err != nil { // a late SIGCONT
		t.Fatal(err)
	}
	if got := settings(t, tty); *got != *before {
		t.Errorf("settings after Close:\n%+v\nbefore:\n%+v", got, before)
	}
}

// TestGuard checks what happens to the terminal when the process that made it
// raw is gone without having restored it.
func TestGuard(t *testing.T) {
	for _, tt := range []struct {
		name    string
		change  func(*unix.Termios) // by the shell, before the guard looks
		restore bool
	}{
		{"nobody restored it", func(*unix.Termios) {}, true},
		{"the shell has it already", func(s *unix.Termios) { s.Lflag |= unix.ISIG }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, tty := openPTY(t)
			before := settings(t, tty)
			term := openTestTerminal(t, tty)
			want := settings(t, tty)
			tt.change(want)
			if err := unix.IoctlSetTermios(int(tty.Fd()), unix.TCSETS, want); err != nil {
				t.Fatal(err)
			}
			if tt.restore {
				want = before
			}
			term.guard.Close() // all that a death does
			if got := settings(t, tty); *got != *want {
				t.Errorf("settings:\n%+v\nwant:\n%+v", got, want)
			}
		})
	}
}

func TestNoTerminal(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if isTerminal(r, w) {
		t.Error("a pipe is taken for a terminal")
	}
	if _, err := openTerminal(r, w, "/proc/self/exe"); err == nil {
		t.Error("a pipe opens as a terminal")
	}
}

func openTestTerminal(t *testing.T, tty *os.File) *terminal {
	t.Helper()
	if !isTerminal(tty, tty) {
		t.Fatal("the pseudo terminal is none")
	}
	term, err := openTerminal(tty, tty, "/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { term.Close() })
	return term
}

// readShown reads what is on the terminal's screen already.
func readShown(t *testing.T, user *os.File) string {
	t.Helper()
	buf := make([]byte, 4096)
	n, err := user.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}
