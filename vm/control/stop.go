package control

import (
	"context"
	"time"

	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/wire"
)

// stopArgs ask for an ending in order.
type stopArgs struct {
	Grace time.Duration `json:"grace_ns"` // for the guest to power off
}

// stop goes on whether or not the client stays: each call climbs one step of the
// ladder.
func (s *Server) stop(ctx context.Context, a stopArgs) (any, error) {
	if a.Grace < 0 {
		return nil, wire.Refuse(wire.KindUsage, "grace %v is negative", a.Grace)
	}
	go s.machine.Stop(context.Background(), a.Grace)
	return s.wait(ctx, none{})
}

func (s *Server) kill(ctx context.Context, _ none) (any, error) {
	if err := s.machine.Kill(); err != nil {
		return nil, err
	}
	return s.wait(ctx, none{})
}

// wait returns when the machine has ended and its launch is undone.
func (s *Server) wait(ctx context.Context, _ none) (any, error) {
	select {
	case <-s.over:
		return s.outcome, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// undoPatience is for QEMU's last steps and the undo of a launch.
const undoPatience = 60 * time.Second

// Stop ends a machine in order: its power button, after grace QEMU's quit, then
// a kill. A call while another is at work skips ahead. It returns when all is
// undone.
func Stop(ctx context.Context, m vm.Machine, grace time.Duration) (o Outcome, err error) {
	err = ask(ctx, m, wire.Request{Verb: "stop", Args: stopArgs{grace}, Timeout: grace + undoPatience}, &o)
	return o, err
}

// Kill ends a machine at once, and returns when all is undone.
func Kill(ctx context.Context, m vm.Machine) (o Outcome, err error) {
	err = ask(ctx, m, wire.Request{Verb: "kill", Timeout: undoPatience}, &o)
	return o, err
}

// Wait waits for a machine's end.
func Wait(ctx context.Context, m vm.Machine) (o Outcome, err error) {
	err = askPatiently(ctx, m, wire.Request{Verb: "wait"}, &o)
	return o, err
}

// Pause stops a machine's guest where it stands.
func Pause(ctx context.Context, m vm.Machine) error {
	return ask(ctx, m, wire.Request{Verb: "pause", Timeout: Patience}, nil)
}

// Resume lets a guest go on that was paused.
func Resume(ctx context.Context, m vm.Machine) error {
	return ask(ctx, m, wire.Request{Verb: "resume", Timeout: Patience}, nil)
}

// Reset resets a machine.
func Reset(ctx context.Context, m vm.Machine) error {
	return ask(ctx, m, wire.Request{Verb: "reset", Timeout: Patience}, nil)
}
