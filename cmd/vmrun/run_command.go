package main

import (
	"context"
	"errors"
	"os"

	"golang.org/x/term"

	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/agent"
)

// errCommandEnded is why the VM of run FILE -- COMMAND is ended.
var errCommandEnded = errors.New("the command has ended")

// attendCommand runs the command of run in the guest as soon as its agent is
// there, ends the VM, and tells how the command ended. Signals end the VM.
func (r *runner) attendCommand(ctx context.Context, w *watch) outcome {
	c := &guestCommand{input: !term.IsTerminal(int(os.Stdin.Fd()))}
	c.command.Argv = r.options.command
	finished := make(chan struct{})
	var result error
	go func() {
		defer close(finished)
		result = c.run(ctx, func(ctx context.Context, c agent.Command, ready func()) (agent.Status, error) {
			a := w.instance.Agent()
			if err := a.Ready(ctx); err != nil {
				return agent.Status{}, err
			}
			ready()
			return a.Run(ctx, c)
		})
		if errors.Is(result, agent.ErrClosed) {
			<-w.instance.Done() // the VM has ended by itself, which is what counts
		}
	}()
	w.finished = finished
	ending := w.wait(ctx)
	<-finished // with the VM all of it has ended
	return commandOutcome(result, ending, w.cause)
}

// commandOutcome is the outcome of a VM that was there for a command.
func commandOutcome(result error, ending vm.Ending, cause error) outcome {
	if !errors.Is(cause, errCommandEnded) || errors.Is(result, agent.ErrClosed) {
		if errors.Is(cause, errCommandEnded) {
			cause = nil
		}
		end := endOutcome(ending, cause)
		if end.cause == nil {
			end.cause = errors.New("the VM ended before the command did")
		}
		return end.ofCommand()
	}
	end := outcome{by: "guest", reason: "command"}
	if exit, ok := errors.AsType[exitError](result); ok {
		end.code, end.cause = exit.code, exit.cause
	}
	if end.code == exitOwn {
		end.by, end.reason = "vmrun", "agent"
	}
	return end
}

// ofCommand is an outcome as run FILE -- COMMAND tells it: codes that could be
// the command's own mean that it failed to run.
func (o outcome) ofCommand() outcome {
	if o.reason != "command" && o.code < exitTimeout {
		o.code = exitOwn
	}
	return o
}
