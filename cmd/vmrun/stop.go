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
)

// endedVM is how a VM ended, as stop, kill and wait tell it.
type endedVM struct {
	Name string `json:"name"`
	control.Outcome
}

// alreadyEnded is the reason of a VM that ended before it could be asked.
const alreadyEnded = "had-ended"

// how says it for people.
func (e endedVM) how() string {
	text := map[string]string{
		vm.GuestShutdown: "the guest powered off",
		vm.GuestReset:    "the guest reset",
		vm.GuestPanic:    "the guest panicked",
		vm.HostQuit:      "QEMU was told to quit",
		vm.HostSignal:    "a signal ended QEMU",
		vm.Killed:        "QEMU was killed",
		alreadyEnded:     "it had just ended",
	}[e.Reason]
	switch {
	case e.Error != "":
		return e.Error
	case text == "":
		return e.Reason
	}
	return text
}

const stopHelp = `End VMs in order: the power button, after --grace QEMU's quit, then a kill. Say how
each one ended, when nothing is left of it. A second stop of a VM skips ahead by
one step.`

func newStopCommand() *cobra.Command {
	var grace time.Duration
	c := endCommand{verb: "stop", short: "End VMs in order", long: stopHelp,
		end: func(ctx context.Context, m vm.Machine) (control.Outcome, error) { return control.Stop(ctx, m, grace) },
		check: func() error {
			if grace < 0 {
				return fmt.Errorf("--grace %v: want a duration that is not negative", grace)
			}
			return nil
		},
	}
	cmd := c.command()
	cmd.Flags().DurationVar(&grace, "grace", 10*time.Second, "how long the guest may take to power off before QEMU is told to quit")
	return cmd
}

func newKillCommand() *cobra.Command {
	c := endCommand{verb: "kill", short: "End VMs at once",
		long: "End VMs at once, without asking guest or QEMU. What run made on the host is undone\nall the same, and run ends with 137.",
		end:  control.Kill, check: func() error { return nil },
	}
	return c.command()
}

// endCommand is a command that ends VMs.
type endCommand struct {
	verb, short, long string
	end               func(context.Context, vm.Machine) (control.Outcome, error)
	check             func() error
}

func (c endCommand) command() *cobra.Command {
	var all, asJSON, quiet bool
	cmd := &cobra.Command{
		Use:   c.verb + " VM…",
		Short: c.short,
		Long:  c.long,
		Args:  vmArgs(&all),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.check(); err != nil {
				return usageError{cmd.CommandPath(), err}
			}
			machines, err := chosenVMs(cmd.Context(), args, all)
			if err != nil {
				return err
			}
			w := io.Writer(&syncWriter{w: cmd.OutOrStdout()})
			if quiet || asJSON {
				w = io.Discard
			}
			ended, err := c.run(cmd.Context(), w, machines)
			if asJSON {
				err = errors.Join(printJSON(cmd.OutOrStdout(), ended), err)
			}
			return err
		},
		ValidArgsFunction: completeVMs(vm.Machine.Alive),
	}
	f := cmd.Flags()
	f.BoolVar(&all, "all", false, "all VMs of this user")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	f.BoolVarP(&quiet, "quiet", "q", false, "say nothing but errors")
	return cmd
}

// run ends the VMs, all at once.
func (c endCommand) run(ctx context.Context, w io.Writer, machines []vm.Machine) ([]endedVM, error) {
	for _, m := range machines {
		if err := living(m, c.verb); err != nil {
			return []endedVM{}, err
		}
	}
	ended := make([]endedVM, len(machines))
	err := each(machines, func(i int, m vm.Machine) error {
		o, err := c.end(ctx, m)
		ended[i] = endedVM{m.Name, o}
		if control.HasEnded(err) {
			ended[i].Reason, err = alreadyEnded, nil
		}
		if err != nil {
			ended[i].Error = err.Error()
			return fmt.Errorf("%s %s: %w", c.verb, m.Name, err)
		}
		_, err = fmt.Fprintf(w, "%s: %s\n", m.Name, ended[i].how())
		return err
	})
	return ended, err
}
