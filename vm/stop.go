package vm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vmrun/vmrun/qmp"
	"github.com/vmrun/vmrun/vm/qemu"
)

// stage is a step of the ladder by which a machine is stopped.
type stage int

const (
	stageRunning   stage = iota
	stagePowerdown       // the guest was asked to power off
	stageQuit            // QEMU was asked to end
	stageKill            // QEMU was killed
)

// quitPatience is how long QEMU may take to end when it is asked to.
const quitPatience = 5 * time.Second

// Stop ends the machine in order and returns when it has ended: the guest is
// asked to power off by its power button; after grace QEMU is asked to end; if
// it does not, it is killed. A call while another is at work skips ahead by one
// step. Where the guest can't be asked, as it is paused or has no power button,
// the first step is left out. An error is the context's; the machine then goes
// on to run, or to end.
func (i *Instance) Stop(ctx context.Context, grace time.Duration) error {
	i.noteStop()
	for {
		step, patience := i.climb(ctx, grace)
		if step > stageKill {
			return i.awaitEnd(ctx)
		}
		acted := i.act(patience, step)
		if acted {
			select {
			case <-i.ended:
			case <-patience.Done():
			}
		}
		switch {
		case i.hasEnded():
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case i.reached() > step:
			return i.awaitEnd(ctx) // another call went on from here
		}
	}
}

// Kill ends QEMU at once, without asking guest or QEMU.
func (i *Instance) Kill() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.hasEnded() {
		return nil
	}
	i.ending.Killed = true
	i.ladder = stageKill
	i.endStep()
	if err := i.process.kill(); err != nil {
		return fmt.Errorf("kill QEMU: %w", err)
	}
	return nil
}

func (i *Instance) noteStop() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.hasEnded() && i.ending.GuestExit == nil {
		i.ending.Stopped = true
	}
}

// climb goes on to the ladder's next step, ending the wait of whoever stands on
// the present one. The context ends with the patience for the new step.
func (i *Instance) climb(ctx context.Context, grace time.Duration) (stage, context.Context) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.endStep()
	if i.ladder == stageKill {
		return stageKill + 1, ctx
	}
	i.ladder++
	patience := map[stage]time.Duration{stagePowerdown: grace, stageQuit: quitPatience}
	if limit, ok := patience[i.ladder]; ok {
		ctx, i.leaveStep = context.WithTimeout(ctx, limit)
	}
	return i.ladder, ctx
}

func (i *Instance) endStep() {
	if i.leaveStep != nil {
		i.leaveStep()
		i.leaveStep = nil
	}
}

// act takes a step of the ladder. It tells whether there is something to wait
// for: a command that is refused, or not answered in time, has no effect.
func (i *Instance) act(ctx context.Context, step stage) bool {
	switch step {
	case stagePowerdown:
		return i.hearsButton(ctx) && i.QMP().Run(ctx, "system_powerdown", nil, nil) == nil
	case stageQuit:
		err := i.QMP().Run(ctx, "quit", nil, nil)
		return err == nil || errors.Is(err, qmp.ErrClosed)
	default:
		return i.process.kill() == nil
	}
}

// hearsButton tells whether the guest could notice its power button.
func (i *Instance) hearsButton(ctx context.Context) bool {
	if i.plan.Machine == qemu.MicroVM {
		return false
	}
	var status struct{ Running bool }
	return i.QMP().Run(ctx, "query-status", nil, &status) == nil && status.Running
}

func (i *Instance) reached() stage {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.ladder
}

func (i *Instance) hasEnded() bool {
	select {
	case <-i.ended:
		return true
	default:
		return false
	}
}

func (i *Instance) awaitEnd(ctx context.Context) error {
	_, err := i.Wait(ctx)
	return err
}
