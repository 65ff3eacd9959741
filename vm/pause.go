package vm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vmrun/vmrun/qmp"
)

// StateError says that a machine is not in a state for what it was asked to do.
type StateError struct{ Text string }

func (e *StateError) Error() string { return e.Text }

// status is what QEMU says of the machine (QMP reference, StatusInfo).
type status struct {
	Running bool   `json:"running"`
	Status  string `json:"status"`
}

func (i *Instance) status(ctx context.Context) (status, error) {
	var s status
	err := i.QMP().Run(ctx, "query-status", nil, &s)
	return s, err
}

// Pause stops the guest where it stands. One that stands already is a
// *StateError.
func (i *Instance) Pause(ctx context.Context) error {
	s, err := i.status(ctx)
	if err == nil && !s.Running {
		return &StateError{"it is not running: " + s.Status}
	}
	if err == nil {
		err = i.QMP().Run(ctx, "stop", nil, nil)
	}
	if err == nil {
		i.enter(Paused)
	}
	return i.wentAway(err)
}

// Resume lets a guest that was paused go on. One that runs is a *StateError.
func (i *Instance) Resume(ctx context.Context) error {
	s, err := i.status(ctx)
	if err == nil && s.Running {
		return &StateError{"it is running"}
	}
	if err == nil {
		err = i.QMP().Run(ctx, "cont", nil, nil)
	}
	if err == nil {
		i.enter(Running)
	}
	return i.wentAway(err)
}

// Reset resets the machine, as its reset button would, and returns when it has
// begun anew. It does so also where a reset by the guest would be its end.
func (i *Instance) Reset(ctx context.Context) error {
	events, cancel := i.QMP().Subscribe()
	guarded := i.plan.noReboot()
	if guarded {
		if err := i.setReboot(ctx, "reset"); err != nil {
			cancel()
			return i.wentAway(err)
		}
	}
	err := i.QMP().Run(ctx, "system_reset", nil, nil)
	if err == nil {
		err = awaitReset(ctx, events)
	}
	if guarded {
		go i.guardAgain(i.resets.Add(1), events, cancel)
	} else {
		cancel()
	}
	return i.wentAway(err)
}

// awaitReset waits for the event of a reset.
func awaitReset(ctx context.Context, events <-chan qmp.Event) error {
	for {
		select {
		case e, more := <-events:
			switch {
			case !more:
				return qmp.ErrClosed
			case e.Name == "RESET":
				return nil
			}
		case <-ctx.Done():
			return fmt.Errorf("wait for the reset: %w", context.Cause(ctx))
		}
	}
}

// firmwarePatience is how long after a reset the firmware may reset once more.
const firmwarePatience = 2 * time.Second

// guardAgain makes a reset by the guest its end again, some time after one by us:
// SeaBIOS, when it finds its memory used, resets the machine itself, once.
func (i *Instance) guardAgain(reset int64, events <-chan qmp.Event, cancel func()) {
	defer cancel()
	ctx, done := context.WithTimeout(context.Background(), firmwarePatience)
	defer done()
	_ = awaitReset(ctx, events) // or none
	if i.resets.Load() == reset {
		_ = i.setReboot(context.Background(), "shutdown") // fails when QEMU is gone
	}
}

// setReboot says what a reset does (QMP reference, set-action).
func (i *Instance) setReboot(ctx context.Context, action string) error {
	return i.QMP().Run(ctx, "set-action", map[string]string{"reboot": action}, nil)
}

// wentAway makes the end of QEMU's connection the state that it is.
func (i *Instance) wentAway(err error) error {
	if errors.Is(err, qmp.ErrClosed) {
		return &StateError{"it has just ended"}
	}
	return err
}
