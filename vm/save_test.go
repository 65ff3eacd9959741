package vm

import (
	"context"
	"errors"
	"io"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A snapshot that can't be finished leaves nothing, and the guest goes on.
func TestSaveCutShort(t *testing.T) {
	h, p := realFixture(t)
	i := launchReal(t, h, realPlan(t, h, p), Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := i.Save(ctx, "one"); !errors.Is(err, context.Canceled) {
		t.Errorf("called off: %v", err)
	}
	checkNoSnapshot(t, h, i)
	onFullDisk(t, snapshotsDir(h, p.Name), func() {
		if _, err := i.Save(t.Context(), "one"); err == nil {
			t.Error("a snapshot fits on a full disk")
		}
		checkNoSnapshot(t, h, i)
	})
	if _, err := i.Save(t.Context(), "one"); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// signalQEMU returns when a QEMU that is stopped has noticed.
func signalQEMU(t *testing.T, i *Instance, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(i.PID(), s); err != nil {
		t.Fatal(err)
	}
	for s == syscall.SIGSTOP && StoppedProcess("QEMU", i.PID()) == "" { // all its threads have to
		runtime.Gosched()
	}
}

// A QEMU that a signal has stopped for a moment is waited for.
func TestSaveStoppedForAMoment(t *testing.T) {
	const moment = 300 * time.Millisecond
	h, p := realFixture(t)
	i := launchReal(t, h, realPlan(t, h, p), Options{})
	signalQEMU(t, i, syscall.SIGSTOP)
	goesOn := time.AfterFunc(moment, func() { syscall.Kill(i.PID(), syscall.SIGCONT) })
	defer goesOn.Stop()
	if _, err := i.Save(t.Context(), "one"); err != nil {
		t.Error(err)
	}
	if got := runState(t, i); got != "running" {
		t.Errorf("the machine is %s", got)
	}
}

// A QEMU that a signal has stopped is not waited for longer, before its memory is
// saved or in the midst of it, and when it goes on so does the guest.
func TestSaveStopped(t *testing.T) {
	h, p := realFixture(t)
	i := launchReal(t, h, realPlan(t, h, p), Options{})
	signal := func(s syscall.Signal) {
		t.Helper()
		signalQEMU(t, i, s)
	}
	isStopped := func(err error) {
		t.Helper()
		if _, ok := errors.AsType[*StateError](err); !ok || !strings.Contains(err.Error(), "stopped by a signal") {
			t.Errorf("a stopped QEMU was saved: %v", err)
		}
	}
	signal(syscall.SIGSTOP)
	_, err := i.Save(t.Context(), "one")
	isStopped(err)
	signal(syscall.SIGCONT)
	checkNoSnapshot(t, h, i)

	full, memory, err := os.Pipe() // which nobody reads: QEMU gets stuck
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	if err := i.QMP().Run(t.Context(), "stop", nil, nil); err != nil {
		t.Fatal(err)
	}
	m := migration{i.QMP(), i.PID()}
	saved := make(chan error)
	go func() {
		saved <- unlessStopped(t.Context(), m.qemu, func(ctx context.Context) error { return m.save(ctx, memory) })
	}()
	if _, err := io.ReadFull(full, make([]byte, 4<<10)); err != nil { // it has begun
		t.Fatal(err)
	}
	signal(syscall.SIGSTOP)
	isStopped(<-saved)
	if err := afterwards(t.Context(), i.QMP(), i.PID(), "cont", nil); err != nil {
		t.Error(err)
	}
	if err := errors.Join(memory.Close(), full.Close()); err != nil {
		t.Error(err)
	}
	signal(syscall.SIGCONT)
	for deadline := time.Now().Add(10 * time.Second); runState(t, i) != "running" && time.Now().Before(deadline); runtime.Gosched() {
	}
	checkNoSnapshot(t, h, i)
}

func checkNoSnapshot(t *testing.T, h Host, i *Instance) {
	t.Helper()
	if left, err := os.ReadDir(snapshotsDir(h, i.plan.Name)); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if got := runState(t, i); got != "running" {
		t.Errorf("the machine is %s", got)
	}
}

// onFullDisk has a small file system at a folder while f runs. The thread that
// sees it ends with f.
func onFullDisk(t *testing.T, dir string, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Log("not root: without a full disk")
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		err := errors.Join(unix.Unshare(unix.CLONE_NEWNS|unix.CLONE_FS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"))
		if err != nil {
			t.Errorf("make a small file system: %v", err)
			return
		}
		f()
	}()
	<-done
}
