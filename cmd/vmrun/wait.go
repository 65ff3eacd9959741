package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/control"
	"github.com/vmrun/vmrun/vm/wire"
)

const waitHelp = `Wait until VMs have ended, and exit with the exit code of the run, of several with
the highest.

With --for, wait until they are ready: ip, every NIC has been seen to use an
address; port=N, the guest takes TCP connections at a port; agent, the guest's
agent answers; log=REGEXP, a line of the console matches. Exit code 124 when
--timeout has passed, or it can't be any more, and what was missing.`

// waitOptions are the flags of wait.
type waitOptions struct {
	condition string
	timeout   time.Duration // 0: none
	asJSON    bool
	quiet     bool
}

func newWaitCommand() *cobra.Command {
	var o waitOptions
	cmd := &cobra.Command{
		Use:   "wait VM…",
		Short: "Wait until VMs have ended, or are ready",
		Long:  waitHelp,
		Args:  usageArgs(someVMs),
		RunE: func(cmd *cobra.Command, args []string) error {
			return waitForVMs(cmd.Context(), cmd.OutOrStdout(), args, o)
		},
		ValidArgsFunction: completeVMs(anyVM),
	}
	f := cmd.Flags()
	f.StringVar(&o.condition, "for", "", "what to wait for: ip, port=N, agent, log=REGEXP (default: the end)")
	f.DurationVar(&o.timeout, "timeout", 0, "how long to wait, with exit code 124 then (default: for ever)")
	f.BoolVar(&o.asJSON, "json", false, "print JSON")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "say nothing but errors")
	return cmd
}

func waitForVMs(ctx context.Context, w io.Writer, names []string, o waitOptions) error {
	if o.timeout < 0 {
		return usageError{"vmrun wait", fmt.Errorf("--timeout %v: want a duration that is not negative", o.timeout)}
	}
	var condition control.Condition
	if o.condition != "" {
		var err error
		if condition, err = control.ParseCondition(o.condition); err != nil {
			return usageError{"vmrun wait", fmt.Errorf("--for: %w", err)}
		}
	}
	machines, err := chosenVMs(ctx, names, false)
	if err != nil {
		return err
	}
	if o.condition != "" {
		return awaitVMs(ctx, w, machines, condition, o)
	}
	return awaitEnds(ctx, w, machines, o)
}

// awaitVMs waits until all VMs meet a condition.
func awaitVMs(ctx context.Context, w io.Writer, machines []vm.Machine, c control.Condition, o waitOptions) error {
	type result struct {
		Name string `json:"name"`
		Met  string `json:"met"`
	}
	results := make([]result, len(machines))
	err := each(machines, func(i int, m vm.Machine) error {
		if err := living(m, "wait for"); err != nil {
			return err
		}
		met, err := control.Await(ctx, m, c, o.timeout)
		if err != nil {
			return fmt.Errorf("wait for %s of %s: %w", c, m.Name, err)
		}
		results[i] = result{m.Name, met.Text}
		return nil
	})
	if err != nil {
		return exitError{unmetCode(err), err}
	}
	if o.asJSON {
		return printJSON(w, results)
	}
	for _, r := range results {
		if !o.quiet {
			fmt.Fprintf(w, "%s: %s\n", r.Name, r.Met)
		}
	}
	return nil
}

// unmetCode is the exit code where a condition was not met, or where that could
// not be found out.
func unmetCode(err error) int {
	if r, ok := errors.AsType[*wire.Refusal](err); ok && (r.Kind == wire.KindUnmet || r.Kind == wire.KindDeadline) {
		return exitTimeout
	}
	return exitFailed
}

// awaitEnds waits until all VMs have ended.
func awaitEnds(ctx context.Context, w io.Writer, machines []vm.Machine, o waitOptions) error {
	if o.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, o.timeout, errors.New("--timeout passed"))
		defer cancel()
	}
	out := &syncWriter{w: w}
	ended := make([]endedVM, len(machines))
	err := each(machines, func(i int, m vm.Machine) (err error) {
		ended[i].Name = m.Name
		if ended[i].Outcome, err = awaitEnd(ctx, m); err != nil {
			return fmt.Errorf("wait for %s: %w", m.Name, err)
		}
		if !o.asJSON && !o.quiet {
			fmt.Fprintf(out, "%s: %s\n", m.Name, ended[i].how())
		}
		return nil
	})
	if o.asJSON {
		err = errors.Join(printJSON(w, ended), err)
	}
	switch {
	case ctx.Err() != nil:
		return exitError{exitTimeout, err}
	case err != nil:
		return err
	}
	code := 0
	for _, e := range ended {
		code = max(code, e.Code)
	}
	if code != 0 {
		return exitError{code: code}
	}
	return nil
}

// keptOutcome is what those who waited for the end were told. An older vmrun has
// kept less of it.
func keptOutcome(e vm.End) control.Outcome {
	o := control.Outcome{Code: e.Code, By: e.By, Reason: e.Reason, Error: e.Error}
	if o.Reason == "" {
		o.Reason = e.Ending.Reason
	}
	return o
}

// awaitEnd waits for a VM's end, or tells that of one that has ended.
func awaitEnd(ctx context.Context, m vm.Machine) (control.Outcome, error) {
	switch m.Phase {
	case vm.Ended:
		return keptOutcome(*m.End), nil
	case vm.Dead:
		return control.Outcome{}, errors.New("its supervisor died; vmrun gc forgets it")
	}
	o, err := control.Wait(ctx, m)
	if control.HasEnded(err) {
		// Too late to be told, but it may have been kept.
		if host, hostErr := locateHost(); hostErr == nil {
			if kept, openErr := vm.Open(ctx, host, m.Name); openErr == nil && kept.Phase == vm.Ended {
				return awaitEnd(ctx, kept)
			}
		}
	}
	return o, err
}
