package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os/signal"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/profiles"
	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/control"
)

const snapshotHelp = `Save a VM's memory and disks, and go on from there later: the guest does not
notice but for the time that has passed.

A snapshot goes with the QEMU that made it, and with the images below disks that
are not kept; what has changed is refused before anything starts. It takes its
machine type along, whatever the profile says by now, and its networks: they are set
up again with the addresses that the VM had. What was attached while it ran comes
back too.`

func newSnapshotCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot save|restore|ls|rm VM …",
		Short: "Save a VM's memory and disks, and go on from there",
		Long:  snapshotHelp,
		Args:  cobra.ArbitraryArgs,
		RunE:  unknownCommand,
	}
	cmd.AddCommand(newSnapshotSaveCommand(), newSnapshotRestoreCommand(), newSnapshotListCommand(), newSnapshotRemoveCommand())
	return cmd
}

func newSnapshotSaveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "save VM NAME",
		Short: "Save a VM as a snapshot",
		Long: "Save a VM as a snapshot. A running guest stands still meanwhile. Of a VM that has ended and\n" +
			"was kept (run --rm=false) the kept disks are saved.",
		Args: attachArgs("a NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := profiles.CheckName(args[1]); err != nil {
				return usageError{cmd.CommandPath(), err}
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
			defer stop()
			m, err := oneVM(ctx, args[0])
			if err != nil {
				return err
			}
			s, err := saveSnapshot(ctx, m, args[1])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: saved as %s, %s\n", m.Name, s.Name, shortBytes(s.Size))
			return err
		},
		ValidArgsFunction: completeOneVM(func(m vm.Machine) bool { return m.Phase != vm.Dead }),
	}
}

func saveSnapshot(ctx context.Context, m vm.Machine, name string) (*vm.Snapshot, error) {
	if m.Phase == vm.Ended {
		host, err := locateHost()
		if err != nil {
			return nil, err
		}
		return vm.SaveEnded(ctx, host, m, name)
	}
	if err := living(m, "save"); err != nil {
		return nil, err
	}
	return control.Save(ctx, m, name)
}

const snapshotRestoreHelp = `Go on from a snapshot of a VM, in the background. A VM of the name that runs is ended
first, at once; what it wrote to disks that are not kept is lost, and kept disks get
the content of the snapshot. Of a snapshot without memory the disks are restored
and nothing is started.`

func newSnapshotRestoreCommand() *cobra.Command {
	o := runOptions{detach: true, remove: true, escape: "none"}
	cmd := &cobra.Command{
		Use:   "restore VM NAME",
		Short: "Go on from a snapshot",
		Long:  snapshotRestoreHelp,
		Args:  attachArgs("a NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := o.check(); err != nil {
				return usageError{cmd.CommandPath(), err}
			}
			return restoreSnapshot(cmd.Context(), args[0], args[1], o)
		},
		ValidArgsFunction: completeSnapshots(1),
	}
	f := cmd.Flags()
	f.DurationVar(&o.grace, "grace", 10*time.Second, "how long the guest may take to power off before QEMU is told to quit")
	f.StringVar(&o.wait, "wait", "started", "return at started, ip, port=N, agent or log=REGEXP")
	f.DurationVar(&o.waitTimeout, "wait-timeout", 5*time.Minute, "how long --wait may take")
	f.BoolVar(&o.keep, "keep", false, "leave the VM running when --wait is not met, or is interrupted")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "no messages but warnings and errors")
	return cmd
}

// restoreSnapshot ends the VM that runs once it is known that nothing hinders the
// other one.
func restoreSnapshot(ctx context.Context, name, snapshot string, o runOptions) error {
	host, err := detectHost()
	if err != nil {
		return err
	}
	s, err := vm.LoadSnapshot(host, name, snapshot)
	if err != nil {
		return err
	}
	plan, err := s.RestorePlan(ctx, host)
	if err != nil {
		return err
	}
	m, err := vm.Open(ctx, host, name)
	if _, gone := errors.AsType[*vm.UnknownError](err); err != nil && !gone {
		return err
	}
	if err == nil && m.Alive() {
		if _, err := control.Kill(ctx, m); err != nil {
			return fmt.Errorf("end %s: %w", name, err)
		}
	}
	if !s.HasMemory() {
		return s.RestoreDisks(ctx)
	}
	return newRunner(ctx, o, 0).goOn(ctx, plan, host)
}

func newSnapshotListCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ls VM",
		Short: "List a VM's snapshots",
		Args:  usageArgs(singleVM),
		RunE: func(cmd *cobra.Command, args []string) error {
			host, err := locateHost()
			if err != nil {
				return err
			}
			all, err := vm.Snapshots(host, args[0])
			if len(all) == 0 && err == nil {
				_, err = vm.Open(cmd.Context(), host, args[0]) // a name that there is not is a slip
			}
			if err != nil && len(all) == 0 {
				return err
			}
			if asJSON {
				return errors.Join(printJSON(cmd.OutOrStdout(), summaries(all)), err)
			}
			return errors.Join(printSnapshots(cmd.OutOrStdout(), all, time.Now()), err)
		},
		ValidArgsFunction: completeOneVM(anyVM),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// snapshotSummary is a snapshot in a list.
type snapshotSummary struct {
	Name    string    `json:"name"`
	VM      string    `json:"vm"`
	Created time.Time `json:"created"`
	Size    int64     `json:"size"` // bytes on the disk
	Memory  bool      `json:"memory"`
	QEMU    string    `json:"qemu"`
}

func summaries(all []*vm.Snapshot) []snapshotSummary {
	list := []snapshotSummary{}
	for _, s := range all {
		list = append(list, snapshotSummary{s.Name, s.VM, s.Created, s.Size, s.HasMemory(), s.QEMU})
	}
	return list
}

func printSnapshots(w io.Writer, all []*vm.Snapshot, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tAGE\tSIZE\tMEMORY\tQEMU")
	for _, s := range all {
		memory := "yes"
		if !s.HasMemory() {
			memory = "no"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", s.Name, now.Sub(s.Created).Round(time.Second), shortBytes(s.Size), memory, s.QEMU)
	}
	return t.Flush()
}

func newSnapshotRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "rm VM NAME…",
		Short: "Remove snapshots",
		Args: usageArgs(func(_ *cobra.Command, args []string) error {
			if len(args) < 2 {
				return errors.New("want a VM and at least one NAME")
			}
			return nil
		}),
		RunE: func(_ *cobra.Command, args []string) error {
			host, err := locateHost()
			if err != nil {
				return err
			}
			var errs []error
			for _, name := range args[1:] {
				s, err := vm.LoadSnapshot(host, args[0], name)
				if err == nil {
					err = s.Remove()
				}
				errs = append(errs, err)
			}
			return errors.Join(errs...)
		},
		ValidArgsFunction: completeSnapshots(math.MaxInt),
	}
}

// completeSnapshots completes a VM, then at most so many of its snapshots.
func completeSnapshots(most int) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		host, err := locateHost()
		switch {
		case err != nil:
			return nil, cobra.ShellCompDirectiveNoFileComp
		case len(args) == 0:
			return vm.SnapshotOwners(host), cobra.ShellCompDirectiveNoFileComp
		case len(args) > most:
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var names []cobra.Completion
		all, _ := vm.Snapshots(host, args[0])
		for _, s := range all {
			if !slices.Contains(args[1:], s.Name) {
				names = append(names, cobra.CompletionWithDesc(s.Name, s.Created.Local().Format(time.DateTime)))
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// goOn starts the VM of a plan in the background, as a detached run does.
func (r *runner) goOn(ctx context.Context, plan *vm.Plan, host vm.Host) error {
	host.Log = r.log
	return r.detached(ctx, func() (outcome, vm.Host) {
		end := r.startDetached(ctx, plan.Profile, plan, host)
		end.vm = plan.Name
		return end, host
	})
}
