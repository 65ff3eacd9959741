package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// needsQEMU skips where there is no QEMU, or fails where VMRUN_TEST_MUST lists
// it.
func needsQEMU(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("qemu-system-x86_64")
	must := strings.Split(os.Getenv("VMRUN_TEST_MUST"), ",")
	switch {
	case err == nil:
	case slices.Contains(must, "qemu"), slices.Contains(must, "all"):
		t.Fatalf("VMRUN_TEST_MUST lists qemu: %v", err)
	default:
		t.Skipf("needs qemu: %v", err)
	}
	return path
}

// startQEMU starts a QEMU without a machine, whose monitor is an inherited
// socket.
func startQEMU(t *testing.T) (*Client, *exec.Cmd) {
	t.Helper()
	path := needsQEMU(t)
	ours, theirs := socketpair(t)
	cmd := exec.Command(path, "-machine", "none", "-display", "none", "-nodefaults", "-S",
		"-chardev", "socket,id=q,fd=3", "-mon", "chardev=q,mode=control")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr
	err := cmd.Start()
	theirs.Close()
	wantNil(t, err)
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	c, err := NewClient(t.Context(), unixConn(t, ours))
	wantNil(t, err)
	t.Cleanup(func() { c.Close() })
	return c, cmd
}

func TestRealQEMU(t *testing.T) {
	c, cmd := startQEMU(t)
	ctx := t.Context()
	if c.Version().Major < 5 {
		t.Errorf("version %v", c.Version())
	}

	var schema json.RawMessage
	wantNil(t, c.Run(ctx, "query-qmp-schema", nil, &schema))
	if len(schema) <= 64<<10 {
		t.Errorf("the schema has %d bytes only", len(schema))
	}

	name := map[string]string{"fdname": "net0"}
	wantNil(t, c.RunWithFile(ctx, "getfd", name, nil, tempFile(t, "")))
	wantNil(t, c.Run(ctx, "closefd", name, nil))
	var refused *Error
	if err := c.Run(ctx, "getfd", name, nil); !errors.As(err, &refused) || refused.Class != "GenericError" {
		t.Errorf("getfd without a file: %v", err)
	}
	if err := c.Run(ctx, "no-such-command", nil, nil); !errors.As(err, &refused) || refused.Class != "CommandNotFound" {
		t.Errorf("unknown command: %v", err)
	}
	// QEMU refuses a NUL as a syntax error, which it answers without id.
	if err := c.Run(ctx, "closefd", map[string]string{"fdname": "a\x00b"}, nil); !errors.As(err, &refused) {
		t.Errorf("NUL in a name: %v", err)
	}

	events, cancel := c.Subscribe()
	defer cancel()
	wantNil(t, c.Run(ctx, "quit", nil, nil))
	e := <-events
	if e.Name != "SHUTDOWN" || !strings.Contains(string(e.Data), `"host-qmp-quit"`) || e.Time.IsZero() {
		t.Errorf("got %s %s at %v, want SHUTDOWN", e.Name, e.Data, e.Time)
	}
	if e, ok := <-events; ok {
		t.Errorf("got %s after SHUTDOWN", e.Name)
	}
	wantNil(t, cmd.Wait())
	if err := c.Run(ctx, "query-status", nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("after quit: %v", err)
	}
}

// Each of many files that are handed over at once must arrive with its own
// command.
func TestRealQEMUGetsTheRightFiles(t *testing.T) {
	c, cmd := startQEMU(t)
	var wg sync.WaitGroup
	for range 16 {
		file := tempFile(t, "")
		wg.Go(func() {
			var added struct{ FD int }
			if err := c.RunWithFile(t.Context(), "add-fd", nil, &added, file); err != nil {
				t.Error(err)
				return
			}
			got, err := os.Readlink(filepath.Join("/proc", fmt.Sprint(cmd.Process.Pid), "fd", fmt.Sprint(added.FD)))
			if err != nil || got != file.Name() {
				t.Errorf("QEMU has %q, %v, want %q", got, err, file.Name())
			}
		})
		wg.Go(func() { c.Run(t.Context(), "query-status", nil, nil) })
	}
	wg.Wait()
}

func TestRealQEMUIsKilled(t *testing.T) {
	c, cmd := startQEMU(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	// Once it is stopped no reply can come any more.
	wantNil(t, cmd.Process.Signal(unix.SIGSTOP))
	var status unix.WaitStatus
	if _, err := unix.Wait4(cmd.Process.Pid, &status, unix.WUNTRACED, nil); err != nil || !status.Stopped() {
		t.Fatalf("QEMU is not stopped: %v, %v", status, err)
	}
	result := run(ctx, c, "query-status")
	wantNil(t, cmd.Process.Kill())
	if err := <-result; !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
	<-c.Done()
}
