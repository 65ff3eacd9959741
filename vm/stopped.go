package vm

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// A process that was stopped by a signal answers nothing, and nobody waits for it
// longer than stoppedLooks times stoppedInterval. What slows others down, as
// cpulimit does, stops them as well, for moments.
const (
	stoppedInterval = 100 * time.Millisecond
	stoppedLooks    = 20
)

// StoppedProcess says of a process that it was stopped by a signal, for people;
// "" if it was not.
func StoppedProcess(what string, pid int) string {
	if p, err := readProcess(pid); err != nil || !p.stopped() {
		return ""
	}
	return fmt.Sprintf("%s (process %d) was stopped by a signal; kill -CONT %d lets it go on", what, pid, pid)
}

// UnlessStopped is a context that ends when a process has been stopped by a signal
// for 2 s. What refuse then makes of StoppedProcess's word is its cause. The
// returned function ends the watch, and leaves the context as it is.
func UnlessStopped(ctx context.Context, what string, pid int, refuse func(why string) error) (watched context.Context, unwatch func()) {
	watched, cancel := context.WithCancelCause(ctx)
	watch, unwatch := context.WithCancel(watched)
	go func() {
		look := time.NewTicker(stoppedInterval)
		defer look.Stop()
		for looks := 0; ; {
			select {
			case <-look.C:
			case <-watch.Done():
				return
			}
			why := StoppedProcess(what, pid)
			if why == "" {
				looks = 0
				continue
			}
			if looks++; looks == stoppedLooks {
				cancel(refuse(why))
				return
			}
		}
	}()
	return watched, unwatch
}

// unlessStopped does something with QEMU. Where that is given up, as a signal has
// stopped QEMU, the error is a *StateError.
func unlessStopped(ctx context.Context, qemu int, do func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watched, unwatch := UnlessStopped(ctx, "QEMU", qemu, func(why string) error { return &StateError{why} })
	defer unwatch()
	err := do(watched)
	cause := context.Cause(watched)
	if _, stopped := errors.AsType[*StateError](cause); stopped && errors.Is(err, context.Canceled) {
		return cause
	}
	return err
}
