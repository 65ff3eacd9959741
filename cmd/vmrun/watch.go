package main

import (
	"context"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/vm"
)

// watch waits for the end of a VM, and brings it about when it is asked to.
type watch struct {
	*runner
	instance *vm.Instance
	actions  <-chan action
	finished <-chan struct{} // closed when there is no more need for the VM; nil: there is
	failed   <-chan error    // gets why the VM is of no use, which its end may be; nil: nobody would say
	cause    error           // why the VM was first asked to end; nil: it was not
}

// wait returns when the VM has ended.
func (w *watch) wait(ctx context.Context) vm.Ending {
	timeout := ctx.Done()
	for {
		select {
		case <-w.instance.Done():
			// The VM has ended, so there is nothing left to wait for.
			ending, _ := w.instance.Wait(context.WithoutCancel(ctx))
			return ending
		case s := <-w.signals:
			w.end(signalError{s.(unix.Signal)})
		case <-timeout:
			timeout = nil // once is enough
			if w.cause == nil {
				w.evidence.look(w.instance)
				w.end(context.Cause(ctx))
			}
		case err := <-w.failed:
			if w.cause == nil && !w.over() {
				w.evidence.look(w.instance)
				w.end(err)
			}
		case a := <-w.actions:
			w.obey(a)
		case <-w.finished:
			w.finished = nil
			if w.cause == nil {
				w.end(errCommandEnded)
			}
		}
	}
}

// over tells whether the VM has ended, which counts more than what it was to become.
func (w *watch) over() bool {
	select {
	case <-w.instance.Done():
		return true
	default:
		return false
	}
}

func (w *watch) obey(a action) {
	switch a {
	case actEnd:
		w.end(errEscape)
	case actHelp:
		// The guest may be in the middle of a line.
		io.WriteString(w.stderr, "\n"+escapeHelp(w.escape, "end the VM"))
	}
}

// end begins to end the VM in order, or skips ahead by one step.
func (w *watch) end(cause error) {
	if w.cause == nil {
		w.cause = cause
		w.log.Info(fmt.Sprintf("%v: the guest has %v to power off; asking again skips the wait", cause, w.options.grace))
	}
	// Each call climbs one step and returns at the VM's end, which wait sees.
	go w.instance.Stop(context.Background(), w.options.grace)
}
