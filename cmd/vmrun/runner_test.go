package main

import (
	"context"
	"errors"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/netsetup"
	"github.com/vmrun/vmrun/vm"
)

// newTestRunner is a runner whose signals the test sends.
func newTestRunner() (*runner, chan<- os.Signal) {
	signals := make(chan os.Signal, 4)
	return &runner{log: newMessages(io.Discard, false), signals: signals}, signals
}

// A signal ends a sweep that takes its time, and nothing is launched.
func TestSignalDuringSweep(t *testing.T) {
	r, signals := newTestRunner()
	r.sweepNetworks = func(ctx context.Context, _ netsetup.Host) ([]string, error) {
		signals <- unix.SIGINT
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	host := vm.Host{Dirs: vm.Dirs{Runtime: t.TempDir()}}
	plan := &vm.Plan{Name: "web", NICs: []vm.NIC{{Spec: &netsetup.Spec{Name: "lan"}}}}
	instance, _, err := r.launch(t.Context(), plan, host)
	if instance != nil || err != (signalError{unix.SIGINT}) {
		t.Errorf("launch returned %v, %v", instance, err)
	}
	if files, err := os.ReadDir(host.Dirs.Runtime); len(files) > 0 || err != nil {
		t.Errorf("the launch has begun: %v, %v", files, err)
	}
}

// An undo that hangs is given up at the second signal, and at the first one
// where a signal ended the VM.
func TestSignalDuringUndo(t *testing.T) {
	for _, asked := range []bool{false, true} {
		r, signals := newTestRunner()
		began, result := make(chan struct{}), make(chan error)
		go func() {
			result <- r.undo(func() error {
				close(began)
				<-t.Context().Done()
				return nil
			}, asked)
		}()
		<-began
		if !asked {
			signals <- unix.SIGTERM
		}
		signals <- unix.SIGINT
		if err := <-result; err == nil || err.Error() != "cut short by SIGINT" {
			t.Errorf("asked before: %v: undo returned %v", asked, err)
		}
	}
}

// Signals from before the undo, however many, don't cut it short.
func TestSignalBeforeUndo(t *testing.T) {
	r, signals := newTestRunner()
	for range 3 {
		signals <- unix.SIGINT
	}
	busy := errors.New("busy")
	if err := r.undo(func() error { return busy }, true); err != busy {
		t.Errorf("undo returned %v, want %v", err, busy)
	}
}
