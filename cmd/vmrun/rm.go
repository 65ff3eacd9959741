package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/control"
)

func newRemoveCommand() *cobra.Command {
	var all, force, quiet bool
	cmd := &cobra.Command{
		SuggestFor: []string{"delete", "remove", "destroy"},
		Use:        "rm VM…",
		Short:      "Forget VMs that have ended",
		Long: "Forget VMs that have ended and were kept by run --rm=false, or that died: their state\n" +
			"and their logs. Snapshots and the profile's disks stay.",
		Args: vmArgs(&all),
		RunE: func(cmd *cobra.Command, args []string) error {
			w := cmd.OutOrStdout()
			if quiet {
				w = io.Discard
			}
			return removeVMs(cmd.Context(), w, args, all, force)
		},
		ValidArgsFunction: completeVMs(anyVM),
	}
	f := cmd.Flags()
	f.BoolVar(&all, "all", false, "all VMs of this user that have ended or died")
	f.BoolVarP(&force, "force", "f", false, "kill VMs that run first")
	f.BoolVarP(&quiet, "quiet", "q", false, "say nothing but errors")
	return cmd
}

func removeVMs(ctx context.Context, w io.Writer, names []string, all, force bool) error {
	host, err := locateHost()
	if err != nil {
		return err
	}
	if all {
		found, err := vm.List(ctx, host)
		if err != nil {
			return err
		}
		for _, m := range found {
			if force || !m.Alive() {
				names = append(names, m.Name)
			}
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	// Before anything is removed.
	var errs []error
	for _, name := range names {
		m, err := vm.Open(ctx, host, name)
		if err == nil && m.Alive() && !force {
			err = fmt.Errorf("rm %s: it %s; vmrun stop ends it", name, m.Phase.Predicate())
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, name := range names {
		errs = append(errs, removeVM(ctx, w, host, name))
	}
	return errors.Join(errs...)
}

// removeVM forgets one VM, which it ends first if it lives.
func removeVM(ctx context.Context, w io.Writer, host vm.Host, name string) error {
	m, err := vm.Open(ctx, host, name)
	if err == nil && m.Alive() {
		if _, err = control.Kill(ctx, m); err != nil && !control.HasEnded(err) {
			return fmt.Errorf("rm %s: %w", name, err)
		}
	}
	err = vm.Remove(ctx, host, name)
	if _, gone := errors.AsType[*vm.UnknownError](err); err != nil && !gone {
		return err
	}
	_, err = fmt.Fprintf(w, "%s: removed\n", name)
	return err
}
