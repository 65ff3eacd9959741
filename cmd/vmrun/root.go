package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/vmrun/vmrun/profiles"
)

// execute runs one command line and returns the exit code.
func execute(ctx context.Context, args []string) int {
	var flags styleFlags
	root := newRootCommand(&flags)
	root.SetArgs(args)
	if asksCompletion(args) {
		completeFlags(root)
	}
	err := root.ExecuteContext(ctx)
	flags.style(os.Stderr, os.Getenv("NO_COLOR")).printError(root.ErrOrStderr(), err)
	return exitCode(err)
}

func newRootCommand(flags *styleFlags) *cobra.Command {
	root := &cobra.Command{
		Use:   "vmrun",
		Short: "Run virtual machines on networks that exist as long as they are needed",
		Long: "vmrun boots the virtual machine that a TOML profile describes, on a network that it\n" +
			"sets up first. When the machine ends, the host is as it was before.",
		Args:          cobra.ArbitraryArgs,
		RunE:          unknownCommand,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := flags.check(); err != nil {
				return usageError{cmd.CommandPath(), err}
			}
			cmd.SetContext(withStyle(cmd.Context(), flags.style(os.Stderr, os.Getenv("NO_COLOR"))))
			if restores(cmd) {
				restoreAside(cmd)
			}
			return nil
		},
	}
	flags.add(root)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{cmd.CommandPath(), err}
	})
	root.SuggestionsMinimumDistance = 2
	root.AddCommand(
		newRunCommand(), newPlanCommand(), newValidateCommand(), newSchemaCommand(),
		newPSCommand(), newInspectCommand(), newStopCommand(), newKillCommand(), newPauseCommand(), newResumeCommand(),
		newResetCommand(), newRemoveCommand(), newWaitCommand(), newConsoleCommand(), newLogsCommand(), newEventsCommand(),
		newQMPCommand(),
		newAttachCommand(), newDetachCommand(), newResizeCommand(), newSnapshotCommand(), newScreenshotCommand(), newVNCCommand(),
		newExecCommand(), newCopyCommand(), newAgentCommand(),
		newTopCommand(), newCaptureCommand(),
		newDoctorCommand(), newGCCommand(), newVersionCommand(),
		newNetCommand(),
		newKeeperCommand(), newDeadmanCommand(), newHolderCommand(), newSupervisorCommand(), newGuardCommand(),
	)
	root.AddCommand(newTopicCommands()...)
	root.SetHelpCommand(newHelpCommand())
	return root
}

// unknownCommand is what the root does when no command was named, or none that
// exists.
func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usageError{cmd.CommandPath(), fmt.Errorf("no command given")}
	}
	err := fmt.Errorf("unknown command %q", args[0])
	if near := nearCommand(cmd, args[0]); near != "" {
		err = fmt.Errorf("%w; did you mean %s?", err, near)
	}
	return usageError{cmd.CommandPath(), err}
}

// nearCommand is the command below another, or the topic of help, that may have
// been meant; "": none is near.
func nearCommand(parent *cobra.Command, word string) string {
	var known []string
	for _, sub := range parent.Commands() {
		if sub.IsAvailableCommand() || sub.IsAdditionalHelpTopicCommand() {
			known = append(append(known, sub.Name()), sub.Aliases...)
		}
	}
	// Of those that are as near, one with a letter changed rather than missing.
	slices.SortStableFunc(known, func(a, b string) int {
		return cmp.Compare(max(len(a)-len(word), len(word)-len(a)), max(len(b)-len(word), len(word)-len(b)))
	})
	if near := profiles.Nearest(word, known); near != "" {
		return near
	}
	if similar := parent.SuggestionsFor(word); len(similar) > 0 {
		return similar[0] // by its beginning, or another word for it
	}
	return ""
}

// usageArgs makes a command's complaint about its arguments a usage error.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{cmd.CommandPath(), err}
		}
		return nil
	}
}

func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("want no argument, got %q", args[0])
	}
	return nil
}

func oneFile(_ *cobra.Command, args []string) error {
	switch len(args) {
	case 0:
		return errors.New("want one FILE, got none")
	case 1:
		return nil
	}
	return fmt.Errorf("want one FILE, got %d", len(args))
}

func someFiles(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return errors.New("want at least one FILE, got none")
	}
	return nil
}
