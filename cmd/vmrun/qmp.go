package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/control"
)

const qmpHelp = `Run a command of the QEMU Machine Protocol in a VM's QEMU and print its reply. The
arguments are a JSON object, or words as size=1024 and data.path=/x.

-i is a prompt, with completion by what this QEMU knows of its commands, and with
the events as they come. Others, and vmrun itself, go on to talk with QEMU meanwhile.`

func newQMPCommand() *cobra.Command {
	var interactive bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "qmp VM [COMMAND [ARGUMENTS]]",
		Short: "Run a QMP command in a VM's QEMU",
		Long:  qmpHelp,
		Args: usageArgs(func(_ *cobra.Command, args []string) error {
			switch {
			case interactive && len(args) != 1:
				return errors.New("want one VM with -i")
			case !interactive && len(args) < 2:
				return errors.New("want a VM and a command, or -i")
			}
			return nil
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			if timeout <= 0 {
				return usageError{"vmrun qmp", fmt.Errorf("--timeout %v: want a duration above zero", timeout)}
			}
			if interactive {
				return qmpPrompt(cmd.Context(), args[0], timeout)
			}
			return qmpOnce(cmd.Context(), cmd.OutOrStdout(), args[0], args[1], args[2:], timeout)
		},
		ValidArgsFunction: completeQMP,
	}
	cmd.Flags().BoolVarP(&interactive, "interactive", "i", false, "read commands at a prompt")
	cmd.Flags().DurationVar(&timeout, "timeout", control.Patience, "how long QEMU may take for a command")
	return cmd
}

func qmpOnce(ctx context.Context, w io.Writer, name, command string, words []string, timeout time.Duration) error {
	args, err := qmpArguments(words)
	if err != nil {
		return usageError{"vmrun qmp", err}
	}
	m, err := oneVM(ctx, name)
	if err != nil {
		return err
	}
	if err := living(m, "ask"); err != nil {
		return err
	}
	reply, err := control.QMP(ctx, m, command, args, timeout)
	if err != nil {
		return fmt.Errorf("ask %s: %w", name, err)
	}
	return printReply(w, reply)
}

func printReply(w io.Writer, reply json.RawMessage) error {
	var text bytes.Buffer
	if err := json.Indent(&text, reply, "", "  "); err != nil {
		return err
	}
	text.WriteByte('\n')
	_, err := text.WriteTo(w)
	return err
}

// completeQMP completes the VM and then QEMU's commands.
func completeQMP(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return completeVMs(vm.Machine.Alive)(cmd, args, toComplete)
	}
	if len(args) > 1 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	m, err := oneVM(ctx, args[0])
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	s, err := loadSchema(ctx, m, 2*time.Second)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return s.commands(), cobra.ShellCompDirectiveNoFileComp
}
