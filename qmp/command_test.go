package qmp

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func tempFile(t *testing.T, content string) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	wantNil(t, os.WriteFile(path, []byte(content), 0o600))
	f, err := os.Open(path)
	wantNil(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func TestRunWithFile(t *testing.T) {
	for name, padding := range map[string]int{"short command": 0, "longer than the socket's buffer": 2 << 20} {
		t.Run(name, func(t *testing.T) {
			c, f := connect(t)
			file := tempFile(t, "content")
			args := map[string]string{"fdname": "net0", "padding": strings.Repeat("x", padding)}
			result := start(func() error { return c.RunWithFile(t.Context(), "getfd", args, nil, file) })
			cmd := f.expect("getfd")
			if len(f.files) != 1 {
				t.Fatalf("%d files came with the command", len(f.files))
			}
			if len(c.wire) != 1 {
				t.Error("another command could follow before the file was taken")
			}
			f.reply(cmd, "{}")
			wantNil(t, <-result)
			if len(c.wire) != 0 {
				t.Error("no command can follow")
			}

			wantNil(t, file.Close())
			got, err := io.ReadAll(f.files[0])
			wantNil(t, err)
			if string(got) != "content" {
				t.Errorf("the file holds %q", got)
			}
		})
	}
}

func TestRunWithoutOpenFileSendsNothing(t *testing.T) {
	c, f := connect(t)
	closed := tempFile(t, "")
	closed.Close()
	err := c.RunWithFile(t.Context(), "getfd", nil, nil, closed)
	if err == nil || err.Error() != "run getfd: not sent: use of closed file" {
		t.Errorf("closed: %v", err)
	}
	if err := c.RunWithFile(t.Context(), "getfd", nil, nil, nil); !errors.Is(err, os.ErrInvalid) {
		t.Errorf("nil: %v", err)
	}
	result := run(t.Context(), c, "next")
	f.reply(f.expect("next"), "{}")
	wantNil(t, <-result)
}

func TestPassedFileKeepsItsMode(t *testing.T) {
	c, f := connect(t)
	r, w, err := os.Pipe()
	wantNil(t, err)
	defer r.Close()
	defer w.Close()
	result := start(func() error { return c.RunWithFile(t.Context(), "getfd", nil, nil, r) })
	f.reply(f.expect("getfd"), "{}")
	wantNil(t, <-result)
	raw, err := r.SyscallConn()
	wantNil(t, err)
	wantNil(t, raw.Control(func(fd uintptr) {
		if flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
			t.Errorf("the caller's pipe has become a blocking file: flags %#x, %v", flags, err)
		}
	}))
}

// A QEMU that does not read holds up commands no longer than they want to wait.
func TestWireThatIsTakenHonoursTheContext(t *testing.T) {
	c, f := connect(t)
	long := start(func() error { return c.Run(t.Context(), "long", strings.Repeat("x", 2<<20), nil) })
	if _, err := f.lines.Peek(1); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	err := c.Run(ctx, "impatient", nil, nil)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "not sent") {
		t.Errorf("got %v", err)
	}
	f.reply(f.expect("long"), "{}")
	wantNil(t, <-long)
}

func TestCommandOfWhichNothingWasWritten(t *testing.T) {
	c, f := connect(t)
	blanks := fillSocket(t, c)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	err := c.Run(ctx, "impatient", nil, nil)
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
	if _, err := f.lines.Discard(blanks); err != nil {
		t.Fatal(err)
	}
	result := run(t.Context(), c, "next")
	f.reply(f.expect("next"), "{}")
	wantNil(t, <-result)
	if len(c.pending) != 0 {
		t.Errorf("%d commands still pending", len(c.pending))
	}
}

// fillSocket writes blanks until nothing more goes in, and tells how many.
func fillSocket(t *testing.T, c *Client) (n int) {
	t.Helper()
	raw, err := c.conn.SyscallConn()
	wantNil(t, err)
	blanks := []byte(strings.Repeat(" ", 4096))
	err = raw.Write(func(fd uintptr) bool {
		for len(blanks) > 0 {
			written, err := unix.Write(int(fd), blanks)
			if errors.Is(err, unix.EAGAIN) {
				blanks = blanks[:len(blanks)/2]
				continue
			}
			n += written
		}
		return true
	})
	wantNil(t, err)
	return n
}

func TestCommandOfWhichHalfWasWrittenEndsTheConnection(t *testing.T) {
	c, f := connect(t)
	other := run(t.Context(), c, "other")
	f.expect("other")
	ctx, cancel := context.WithCancel(t.Context())
	long := start(func() error { return c.Run(ctx, "long", strings.Repeat("x", 2<<20), nil) })
	if _, err := f.lines.Peek(1); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-long; !errors.Is(err, ErrClosed) || !errors.Is(err, context.Canceled) {
		t.Errorf("long: %v", err)
	}
	if err := <-other; !errors.Is(err, ErrClosed) || errors.Is(err, context.Canceled) {
		t.Errorf("other: %v", err)
	}
}

func TestResetByAQEMUThatHadNotReadEverything(t *testing.T) {
	c, f := connect(t)
	result := run(t.Context(), c, "stop")
	f.expect("stop")
	fillSocket(t, c)
	f.hangUp()
	if err := <-result; !errors.Is(err, ErrClosed) || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v", err)
	}
}
