package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

// execute runs one command line and returns the exit code.
func execute(ctx context.Context, args []string) int {
	root := newRootCommand()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	printError(root.ErrOrStderr(), err)
	return exitCode(err)
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "vmrun",
		Short: "Run virtual machines on networks that exist as long as they are needed",
		Long: "vmrun boots the virtual machine that a TOML profile describes, on a network that it\n" +
			"sets up first. When the machine ends, the host is as it was before.",
		Args:          cobra.ArbitraryArgs,
		RunE:          unknownCommand,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{cmd.CommandPath(), err}
	})
	root.SuggestionsMinimumDistance = 2
	root.AddCommand(
		newRunCommand(), newPlanCommand(), newValidateCommand(), newSchemaCommand(),
		newDoctorCommand(), newGCCommand(), newVersionCommand(),
		newKeeperCommand(), newGuardCommand(),
	)
	return root
}

// unknownCommand is what the root does when no command was named, or none that
// exists.
func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usageError{cmd.CommandPath(), fmt.Errorf("no command given")}
	}
	err := fmt.Errorf("unknown command %q", args[0])
	if similar := cmd.SuggestionsFor(args[0]); len(similar) > 0 {
		err = fmt.Errorf("%w; did you mean %s?", err, similar[0])
	}
	return usageError{cmd.CommandPath(), err}
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
