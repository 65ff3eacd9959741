package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/control"
)

func newPauseCommand() *cobra.Command {
	return actCommand{verb: "pause", done: "paused", short: "Stop the guests of VMs where they stand",
		long: "Stop the guests of VMs where they stand. Their networks stay; resume lets them go on.",
		act:  control.Pause}.command()
}

func newResumeCommand() *cobra.Command {
	return actCommand{verb: "resume", done: "running", short: "Let paused guests go on",
		long: "Let guests go on that were paused.", act: control.Resume}.command()
}

func newResetCommand() *cobra.Command {
	return actCommand{verb: "reset", done: "reset", short: "Reset VMs, as by their reset button",
		long: "Reset VMs, as by their reset button: without asking the guest, which begins anew.",
		act:  control.Reset}.command()
}

// actCommand is a command that does something with VMs that live on.
type actCommand struct {
	verb, done, short, long string
	act                     func(context.Context, vm.Machine) error
}

func (c actCommand) command() *cobra.Command {
	var all, quiet bool
	cmd := &cobra.Command{
		Use:   c.verb + " VM…",
		Short: c.short,
		Long:  c.long,
		Args:  vmArgs(&all),
		RunE: func(cmd *cobra.Command, args []string) error {
			machines, err := chosenVMs(cmd.Context(), args, all)
			if err != nil {
				return err
			}
			w := io.Writer(&syncWriter{w: cmd.OutOrStdout()})
			if quiet {
				w = io.Discard
			}
			return c.run(cmd.Context(), w, machines)
		},
		ValidArgsFunction: completeVMs(vm.Machine.Alive),
	}
	cmd.Flags().BoolVar(&all, "all", false, "all VMs of this user")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "say nothing but errors")
	return cmd
}

func (c actCommand) run(ctx context.Context, w io.Writer, machines []vm.Machine) error {
	for _, m := range machines {
		if err := living(m, c.verb); err != nil {
			return err
		}
	}
	return each(machines, func(_ int, m vm.Machine) error {
		if err := c.act(ctx, m); err != nil {
			return fmt.Errorf("%s %s: %w", c.verb, m.Name, err)
		}
		_, err := fmt.Fprintf(w, "%s: %s\n", m.Name, c.done)
		return err
	})
}
