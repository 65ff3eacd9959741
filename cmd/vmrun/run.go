package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmrun/vmrun/netsetup"
)

// runOptions are the flags of run.
type runOptions struct {
	grace   time.Duration // for the guest to power off before QEMU is told to quit
	timeout time.Duration // 0: none
	escape  string
	report  string // file, "" for none
	quiet   bool
}

const runHelp = `Boot the VM that a profile describes, and stay until it ends.

On a terminal the guest's console is there, and the guest gets every key but the
escape, ctrl-] unless --escape says otherwise:

%s
Elsewhere the console goes to stdout, and stdin, unless it is a terminal, to the
console. SIGINT, SIGTERM, SIGHUP and SIGQUIT end the VM in order: the power
button, then after --grace QEMU's quit, then a kill. A further signal skips ahead.
Once the VM is gone a second one ends vmrun at once, and vmrun gc removes the rest.

Exit codes: 0 the guest powered off or was ended by the escape; n its
boot.command exited with n; 2 bad usage or profile; 3 the host can't; 4 QEMU did
not start or died; 5 the guest panicked; 124 --timeout passed; 128+n ended by
signal n.`

func newRunCommand() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run FILE",
		Short: "Boot a VM and stay until it ends",
		Long:  fmt.Sprintf(runHelp, escapeHelp(0x1d)),
		Args:  usageArgs(oneFile),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runCommand(cmd.Context(), args[0], o)
		},
		ValidArgsFunction: completeProfiles,
	}
	f := cmd.Flags()
	f.DurationVar(&o.grace, "grace", 10*time.Second, "how long the guest may take to power off before QEMU is told to quit")
	f.DurationVar(&o.timeout, "timeout", 0, "end the VM after this time, with exit code 124 (default: never)")
	f.StringVar(&o.escape, "escape", "ctrl-]", "the key before . and ? on a terminal, or none")
	f.StringVar(&o.report, "report", "", "write how it ended as JSON to this file")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "no messages but warnings and errors")
	return cmd
}

// runCommand runs one VM and reports how it ended.
func runCommand(ctx context.Context, file string, o runOptions) error {
	key, err := o.check()
	if err != nil {
		return usageError{"vmrun run", err}
	}
	started := time.Now()
	stderr := &lineWriter{w: os.Stderr}
	r := &runner{options: o, escape: key, stderr: stderr, log: newMessages(stderr, o.quiet), sweepNetworks: netsetup.Sweep}
	end := r.run(ctx, file)
	if o.report == "" {
		return end.err()
	}
	if err := writeReport(o.report, newReport(file, started, end)); err != nil {
		printError(os.Stderr, end.err())
		return exitError{max(end.code, exitFailed), err}
	}
	return end.err()
}

// check finds what is wrong with the flags, and what --escape stands for.
func (o runOptions) check() (escape byte, err error) {
	switch {
	case o.grace < 0:
		return 0, fmt.Errorf("--grace %v: want a duration that is not negative", o.grace)
	case o.timeout < 0:
		return 0, fmt.Errorf("--timeout %v: want a duration that is not negative", o.timeout)
	}
	return parseEscape(o.escape)
}
