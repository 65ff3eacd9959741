package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/vmrun/vmrun/netsetup"
	"github.com/vmrun/vmrun/vm/control"
)

// runOptions are the flags of run.
type runOptions struct {
	grace   time.Duration // for the guest to power off before QEMU is told to quit
	timeout time.Duration // 0: none
	escape  string
	report  string // file or folder, "" for none
	quiet   bool
	remove  bool     // forget the VM at its end
	name    string   // instead of the profile's; %d is the first free number; "": none
	set     []string // keys of the profile
	command []string // to run in the guest, instead of its console; nil: none

	detach      bool
	wait        string // condition for a detached run to return
	waitTimeout time.Duration
	notify      bool // tell systemd
	keep        bool // leave a VM running that did not meet wait
}

const runHelp = `Boot the VM that a profile describes, and stay until it ends.

On a terminal the guest's console is there, and the guest gets every key but the
escape, ctrl-] unless --escape says otherwise:

%s
Elsewhere the console goes to stdout, and stdin, unless it is a terminal, to the
console. SIGINT, SIGTERM, SIGHUP, SIGQUIT and SIGABRT end the VM in order: the
power button, then after --grace QEMU's quit, then a kill. A further signal skips
ahead.
Once the VM is gone a second one ends vmrun at once, and vmrun gc removes the rest.

With -d the VM runs in the background, and run returns when it is as ready as
--wait asks: started, ip (every NIC has its address), port=22, agent, or
log=REGEXP, a line of the console. When it is not within --wait-timeout, run says
what was missing, ends the VM unless --keep, and exits with 124. With --notify it
tells systemd then, with -d or without.

With -- COMMAND, run runs the command in the guest by its agent as soon as that
answers, ends the VM, and ends with the command's exit code, or as exec does: 125
where vmrun failed. The console is in the VM's log then.

Exit codes: 0 the guest powered off or was ended by the escape; n its
boot.command exited with n; 2 bad usage or profile; 3 the host can't; 4 QEMU did
not start or died; 5 the guest panicked; 124 --timeout passed, or --wait
was not met; 128+n ended by signal n.`

func newRunCommand() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:        "run FILE [-- COMMAND…]",
		SuggestFor: []string{"start", "up", "boot", "launch", "create"},
		Short:      "Boot a VM and stay until it ends",
		Long:       fmt.Sprintf(runHelp, escapeHelp(0x1d, "end the VM")),
		Args: usageArgs(func(cmd *cobra.Command, args []string) error {
			if dash := cmd.ArgsLenAtDash(); dash >= 0 {
				o.command, args = args[dash:], args[:dash]
			}
			return oneFile(cmd, args)
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := runCommand(cmd.Context(), args[0], o)
			if _, usage := errors.AsType[usageError](err); usage && len(o.command) > 0 {
				return ownFailure(err)
			}
			return err
		},
		ValidArgsFunction: completeProfiles,
	}
	f := cmd.Flags()
	f.DurationVar(&o.grace, "grace", 10*time.Second, "how long the guest may take to power off before QEMU is told to quit")
	f.DurationVar(&o.timeout, "timeout", 0, "end the VM after this time, with exit code 124 (default: never)")
	f.StringVar(&o.escape, "escape", "ctrl-]", "the key before . and ? on a terminal, or none")
	f.StringVar(&o.report, "report", "", "write how it ended as JSON to this file; into a folder, and why a boot failed, with logs")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "no messages but warnings and errors")
	f.BoolVar(&o.remove, "rm", true, "forget the VM at its end; with --rm=false ps -a shows it until vmrun rm")
	f.StringVar(&o.name, "name", "", "another name than the profile's; %d in it is the first free number")
	f.StringArrayVar(&o.set, "set", nil, "set a key of the profile, as in machine.cpus=4 or nics[0].ip=10.70.0.9")
	f.BoolVarP(&o.detach, "detach", "d", false, "run the VM in the background")
	f.StringVar(&o.wait, "wait", "started", "with -d or --notify: be ready at started, ip, port=N, agent or log=REGEXP")
	f.DurationVar(&o.waitTimeout, "wait-timeout", 5*time.Minute, "how long --wait may take")
	f.BoolVar(&o.keep, "keep", false, "leave the VM running when --wait is not met, or is interrupted")
	f.BoolVar(&o.notify, "notify", false, "tell systemd when --wait is met, and when the VM has ended; for a service with Type=notify")
	return cmd
}

// runCommand runs one VM and reports how it ended.
func runCommand(ctx context.Context, file string, o runOptions) error {
	key, err := o.check()
	if err != nil {
		return usageError{"vmrun run", err}
	}
	if err := prepareReport(o.report); err != nil {
		return exitError{exitHost, err}
	}
	r := newRunner(ctx, o, key)
	r.reporting = reporting{file: file, started: time.Now()}
	if o.notify {
		if r.notify, err = newNotifySocket(); err != nil {
			return usageError{"vmrun run", err}
		}
	}
	if o.detach {
		return r.runDetached(ctx, file)
	}
	end := r.run(ctx, file)
	if len(o.command) > 0 {
		end = end.ofCommand()
	}
	return r.report(end)
}

func newRunner(ctx context.Context, o runOptions, escape byte) *runner {
	stderr, style := &lineWriter{w: os.Stderr}, styleOf(ctx)
	return &runner{options: o, escape: escape, style: style, stderr: stderr, log: style.messages(stderr, o.quiet),
		spins: term.IsTerminal(int(os.Stderr.Fd())) && !style.json, sweepNetworks: netsetup.Sweep}
}

// check finds what is wrong with the flags, and what --escape stands for.
func (o runOptions) check() (escape byte, err error) {
	switch {
	case o.grace < 0:
		return 0, fmt.Errorf("--grace %v: want a duration that is not negative", o.grace)
	case o.timeout < 0:
		return 0, fmt.Errorf("--timeout %v: want a duration that is not negative", o.timeout)
	case o.waitTimeout <= 0:
		return 0, fmt.Errorf("--wait-timeout %v: want a duration above zero", o.waitTimeout)
	case !o.detach && !o.notify && o.wait != "started":
		return 0, errors.New("--wait needs -d or --notify: without them run stays until the VM ends, and nobody waits")
	case o.detach && len(o.command) > 0:
		return 0, errors.New("-d and a command exclude each other: use vmrun exec")
	case !o.detach && o.keep:
		return 0, errors.New("--keep needs -d: without it the VM ends with run")
	}
	if _, err := control.ParseCondition(o.wait); err != nil {
		return 0, fmt.Errorf("--wait: %w", err)
	}
	if err := checkTemplate(o.name); err != nil {
		return 0, fmt.Errorf("--name: %w", err)
	}
	return parseEscape(o.escape)
}
