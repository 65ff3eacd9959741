package main

import (
	"context"
	"fmt"

	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/control"
)

// notReadyError says that a service did not come up, and with which exit code that
// ends.
type notReadyError struct {
	code  int
	cause error
}

func (e notReadyError) Error() string { return e.cause.Error() }

func (e notReadyError) Unwrap() error { return e.cause }

// becomeReady tells systemd when the VM of a foreground run is as ready as --wait
// asks. The returned channel gets why it will not be; a VM that has ended says so
// itself.
func (r *runner) becomeReady(ctx context.Context, instance *vm.Instance) <-chan error {
	failed := make(chan error, 1)
	go func() {
		condition, err := control.ParseCondition(r.options.wait)
		if err == nil && !condition.Started() {
			err = r.awaitHere(ctx, instance, condition)
		}
		if err == nil {
			if err = r.notify.tell(notifyReady); err != nil {
				err = notReadyError{exitFailed, err}
			}
		}
		if err != nil && !control.HasEnded(err) {
			failed <- err
		}
	}()
	return failed
}

// awaitHere waits for a condition of a VM that this process runs.
func (r *runner) awaitHere(ctx context.Context, instance *vm.Instance, condition control.Condition) error {
	m, err := vm.Open(ctx, r.evidence.host, instance.Plan().Name)
	if err != nil {
		return notReadyError{exitFailed, err}
	}
	if _, err := control.Await(ctx, m, condition, r.options.waitTimeout); err != nil {
		return notReadyError{exitTimeout, fmt.Errorf("wait for %s: %w", condition, err)}
	}
	return nil
}
