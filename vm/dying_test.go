package vm

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// lingering is a process that has a file locked, and that a SIGKILL has not
// quite ended before its tracer, which this is, lets it go.
type lingering struct {
	*exec.Cmd
	trace chan func() // runs on the one thread that may
}

// locker starts a process that has a lock.
func locker(t *testing.T, path string) *lingering {
	t.Helper()
	l := &lingering{exec.Command("flock", "--no-fork", path, "sh", "-c", "echo locked; exec cat"), make(chan func())}
	in, err := l.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := l.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		close(l.trace) // with its thread goes what it has of the process
		in.Close()
		l.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "locked\n" {
		t.Fatalf("%q, %v", line, err)
	}
	go func() {
		runtime.LockOSThread()
		for f := range l.trace {
			f()
		}
	}()
	return l
}

// do runs f as the tracer.
func (l *lingering) do(t *testing.T, f func() error) {
	t.Helper()
	result := make(chan error)
	l.trace <- func() { result <- f() }
	if err := <-result; err != nil {
		t.Fatal(err)
	}
}

// kill kills the process, and waits until it is at the end's beginning.
func (l *lingering) kill(t *testing.T) {
	t.Helper()
	pid := l.Process.Pid
	var refused error
	l.do(t, func() error {
		if _, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(pid), 0, unix.PTRACE_O_TRACEEXIT, 0, 0); errno != 0 {
			refused = os.NewSyscallError("ptrace", errno)
		}
		return nil
	})
	if refused != nil {
		lacking(t, "ptrace", refused)
	}
	l.do(t, func() error {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			return err
		}
		var status unix.WaitStatus
		if _, err := unix.Wait4(pid, &status, unix.WALL, nil); err != nil {
			return err
		}
		if !status.Stopped() {
			t.Errorf("it has ended: %#x", status)
		}
		return nil
	})
}

// end lets the process end.
func (l *lingering) end(t *testing.T) {
	t.Helper()
	l.do(t, func() error { return unix.PtraceDetach(l.Process.Pid) })
}

// A launch right after the supervisor of a machine of that name was killed waits
// for the kernel, and does not take that for a machine that runs.
func TestNameOfTheDying(t *testing.T) {
	for _, who := range []string{"supervisor", "QEMU"} {
		t.Run(who, func(t *testing.T) {
			f := newFixture(t, "serve")
			dir := filepath.Join(vmsFolder(f.host.Dirs.Runtime), "web")
			if err := makeFolders(f.host.Dirs.Runtime, dir); err != nil {
				t.Fatal(err)
			}
			other := locker(t, filepath.Join(dir, lockFile))
			s := State{Name: "web", Supervisor: other.Process.Pid}
			if who == "QEMU" {
				s.Supervisor, s.QEMU = 0, other.Process.Pid
			}
			if err := writeState(filepath.Join(dir, stateFile), s); err != nil {
				t.Fatal(err)
			}
			other.kill(t)
			f.options.before = func(step string) error {
				if step == "claim" && isLocked(t, filepath.Join(dir, lockFile)) {
					t.Error("it was not waited for")
				}
				return nil
			}
			ctx := &askedContext{t.Context(), func() { other.end(t) }, sync.Once{}}
			i, err := Launch(ctx, f.plan(t), f.host, f.options)
			if err != nil {
				t.Fatal(err)
			}
			if err := i.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// askedContext is a context that tells when somebody begins to wait with it.
type askedContext struct {
	context.Context
	asked func()
	once  sync.Once
}

func (c *askedContext) Done() <-chan struct{} {
	c.once.Do(c.asked)
	return c.Context.Done()
}

func isLocked(t *testing.T, path string) bool {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == unix.EWOULDBLOCK
}

// Who lives is not waited for, and neither is what takes too long.
func TestAwaitKilled(t *testing.T) {
	other := locker(t, filepath.Join(t.TempDir(), "lock"))
	awaitDying(context.Background(), other.Process.Pid)
	other.kill(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { awaitDying(ctx, other.Process.Pid); close(done) }()
	cancel()
	<-done
	other.end(t)
	awaitDying(context.Background(), other.Process.Pid)
}
