package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCopyOnTerminal shows how far a copy is while the guest keeps it waiting, and
// nothing of that when it is done.
func TestCopyOnTerminal(t *testing.T) {
	env := background(t, "serve,agent")
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from.bin"), filepath.Join(dir, "to.bin")
	content := bytes.Repeat([]byte("data"), 1<<18)
	if err := os.WriteFile(from, content, 0o600); err != nil {
		t.Fatal(err)
	}
	guest, err := strconv.Atoi(strings.TrimSpace(vmrun(t, env, "ps", "--format", "{{.PID}}")))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(guest, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer unix.Kill(guest, unix.SIGCONT)
	s := onTerminal(t, append(env, "TERM=xterm"), "cp", "--wait", "50s", from, "vm:"+to)
	if err := unix.IoctlSetWinsize(int(s.tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}); err != nil {
		t.Fatal(err)
	}
	s.shows("from.bin ")
	s.shows("/ 1.00 MiB")
	if err := unix.Kill(guest, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if code := s.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	s.shows("\r\x1b[0m" + strings.Repeat(" ", 80) + "\x1b[0m\r") // the line is empty again
	if s.seen != "" {
		t.Errorf("left on the screen is %q", s.seen)
	}
	if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes came, %v", len(got), err)
	}
}

// However many bytes come of how many that were told, some of them before, the bar
// shows no more than all, and all when nothing more comes.
func TestCopyProgress(t *testing.T) {
	for moved, want := range map[int][]string{
		700:  {"700 B / 1000 B", "70.00%", "700 B / 700 B", "100.00%"},
		1000: {"1000 B / 1000 B", "100.00%", "1000 B / 1000 B", "100.00%"},
		2003: {"1000 B / 1000 B", "100.00%", "1000 B / 1000 B", "100.00%"},
	} {
		p := &copyProgress{name: "file", w: io.Discard}
		p.Write(make([]byte, moved/2))
		p.start(1000)
		p.Write(make([]byte, moved-moved/2))
		before := p.bar.String()
		p.complete()
		after := p.bar.String()
		p.end()
		if !strings.Contains(before, want[0]) || !strings.Contains(before, want[1]) || !strings.Contains(after, want[2]) || !strings.Contains(after, want[3]) {
			t.Errorf("%d bytes of 1000: shown are\n%s\n%s, want %s", moved, before, after, want)
		}
	}
}
