package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/control"
)

const consoleHelp = `Attach to the console of a VM that runs. Several may be attached at once; all see
the same, and what they type is mixed. It begins with the last --lines lines.

On a terminal the guest gets every key but the escape:

%s
Elsewhere the console goes to stdout, and stdin, unless it is a terminal, to the
console. It ends with the VM. Who does not read misses some; vmrun logs has all.`

// consoleOptions are the flags of console.
type consoleOptions struct {
	lines  int
	escape string
	quiet  bool
}

func newConsoleCommand() *cobra.Command {
	var o consoleOptions
	cmd := &cobra.Command{
		Use:   "console VM",
		Short: "Attach to the console of a VM",
		Long:  fmt.Sprintf(consoleHelp, escapeHelp(0x1d, "detach")),
		Args:  usageArgs(singleVM),
		RunE: func(cmd *cobra.Command, args []string) error {
			return attachConsole(cmd.Context(), args[0], o)
		},
		ValidArgsFunction: completeOneVM(vm.Machine.Alive),
	}
	f := cmd.Flags()
	f.IntVar(&o.lines, "lines", 20, "how much of the output so far to show; -1: all that is kept, up to a megabyte")
	f.StringVar(&o.escape, "escape", "ctrl-]", "the key before . and ? on a terminal, or none")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "no messages but warnings and errors")
	return cmd
}

// attachConsole stays attached until the VM ends or the user detaches.
func attachConsole(ctx context.Context, name string, o consoleOptions) error {
	key, err := parseEscape(o.escape)
	if err != nil {
		return usageError{"vmrun console", err}
	}
	if o.lines < -1 {
		return usageError{"vmrun console", fmt.Errorf("--lines %d: want a number from -1", o.lines)}
	}
	m, err := oneVM(ctx, name)
	if err != nil {
		return err
	}
	if err := living(m, "attach to"); err != nil {
		return err
	}
	signals, stop := listen()
	defer stop()
	c, err := control.OpenConsole(ctx, m, o.lines)
	if err != nil {
		return fmt.Errorf("attach to %s: %w", name, err)
	}
	stderr := &lineWriter{w: os.Stderr}
	r := &runner{escape: key, style: styleOf(ctx), stderr: stderr, log: styleOf(ctx).messages(stderr, o.quiet), signals: signals}
	s, err := r.openScreen(c, "detaches")
	if err != nil {
		return exitError{exitHost, err}
	}
	defer s.Close()
	return r.stayAttached(ctx, s, m)
}

// goneIn is how long a VM whose console has ended may take to be gone.
const goneIn = 5 * time.Second

// stayAttached returns when the VM has ended, or is not wanted any more.
func (r *runner) stayAttached(ctx context.Context, s *screen, m vm.Machine) error {
	name := m.Name
	for {
		select {
		case <-s.shown:
			if s.err != nil && !errors.Is(s.err, unix.EPIPE) {
				return fmt.Errorf("stay attached to %s: %w", name, s.err)
			}
			// When nothing is left of it, so that its name can be used again. Its
			// supervisor was asked before, and tells what else there is to tell.
			ctx, cancel := context.WithTimeout(ctx, goneIn)
			defer cancel()
			_, _ = control.Wait(ctx, m)
			r.log.Info(name + " has ended")
			return nil
		case sig := <-r.signals:
			signal := signalError{sig.(unix.Signal)}
			return exitError{exitSignal + int(signal.signal), fmt.Errorf("detached: %w", signal)}
		case a := <-s.actions:
			switch a {
			case actEnd:
				r.log.Info("detached from " + name)
				return nil
			case actHelp:
				fmt.Fprint(r.stderr, escapeHelp(r.escape, "detach"))
			}
		}
	}
}
