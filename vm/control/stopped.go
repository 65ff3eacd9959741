package control

import (
	"context"

	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/wire"
)

// unlessStopped is a context that ends, with a *wire.Refusal as its cause, when a
// process has been stopped by a signal for a while. The returned function ends
// the watch, and leaves the context as it is.
func unlessStopped(ctx context.Context, what string, pid int) (watched context.Context, unwatch func()) {
	return vm.UnlessStopped(ctx, what, pid, noAnswer)
}

// noAnswer is the refusal of what was not done in time, and why.
func noAnswer(why string) error { return wire.Refuse(wire.KindDeadline, "no answer in time: %s", why) }
