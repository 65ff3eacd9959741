package wire

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Sockets are bound in the place of those that were left, however deep the folder
// is, for their owner alone.
func TestListen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("deep/", 40))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, listen := range map[string]func(dir, name string) (*net.UnixListener, error){"ctl.sock": Listen, "display.sock": ListenStream} {
		dial := Dial
		if name == "display.sock" {
			dial = DialStream
		}
		for range 2 { // the second time in place of the first
			l, err := listen(dir, name)
			if err != nil {
				t.Fatal(err)
			}
			fi, err := os.Stat(filepath.Join(dir, name))
			if err != nil || fi.Mode() != fs.ModeSocket|0o600 {
				t.Errorf("%s: %v, %v", name, fi.Mode(), err)
			}
			conn, err := dial(t.Context(), dir, name)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(conn.Close(), l.Close()); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
				t.Errorf("%s is gone with the listener: %v", name, err)
			}
		}
		if _, err := listen(filepath.Join(dir, "nowhere"), name); err == nil || !strings.Contains(err.Error(), "listen on "+name) {
			t.Errorf("in no folder: %v", err)
		}
	}
}

// A server that is stopped is told from one that is gone.
func TestNoAnswer(t *testing.T) {
	dir := t.TempDir()
	l, err := Listen(dir, socket)
	if err != nil {
		t.Fatal(err)
	}
	c := Client{dir, socket}
	if _, err := c.Do(t.Context(), Request{Verb: "echo", Timeout: time.Nanosecond}, nil); !errors.Is(err, ErrNoAnswer) {
		t.Errorf("a server that stands still: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Do(t.Context(), Request{Verb: "echo"}, nil); !NobodyListens(err) {
		t.Errorf("a server that is gone: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, socket)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Do(t.Context(), Request{Verb: "echo"}, nil); !NobodyListens(err) {
		t.Errorf("a server that never was: %v", err)
	}
}
