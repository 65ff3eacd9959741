package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/agent"
	"github.com/vmrun/vmrun/vm/control"
)

// exitOwn is the exit code of exec where not the command failed but vmrun.
const exitOwn = 125

// execOptions are the flags of exec.
type execOptions struct {
	terminal bool
	input    bool
	env      []string
	dir      string
	timeout  time.Duration // 0: none
	wait     time.Duration // for the agent
	escape   string
}

const execHelp = `Run a command in the guest of a running VM, by vmrun's own agent, which is in every
micro guest, or by qemu-guest-agent. Output, input and signals are the command's;
input that is a terminal is only with -i or -t.

With -t the command gets a terminal, and every key but the escape, ctrl-] unless
--escape says otherwise; ctrl-] . ends exec. qemu-guest-agent has no terminals,
takes all input before it starts the command, and returns the output at its end.

SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 are passed on; the third
one of a kind ends exec. When exec ends, so does the command.

Exit codes: the command's own; 128+n where signal n ended it; 126 and 127 it could
not be run; 124 --timeout passed; 125 vmrun failed.`

func newExecCommand() *cobra.Command {
	var o execOptions
	cmd := &cobra.Command{
		SuggestFor: []string{"ssh", "shell"},
		Use:        "exec VM -- COMMAND…",
		Short:      "Run a command in the guest of a VM",
		Long:       execHelp,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return ownFailure(usageError{cmd.CommandPath(), errors.New("want a VM and a command")})
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return execCommand(cmd.Context(), args[0], args[1:], o)
		},
		ValidArgsFunction: completeOneVM(vm.Machine.Alive),
	}
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return ownFailure(usageError{cmd.CommandPath(), err})
	})
	f := cmd.Flags()
	f.BoolVarP(&o.terminal, "tty", "t", false, "give the command a terminal")
	f.BoolVarP(&o.input, "interactive", "i", false, "pass input on also where it is a terminal")
	f.StringArrayVarP(&o.env, "env", "e", nil, "set a variable for the command, as in A=b; A alone passes on our own")
	f.StringVarP(&o.dir, "cwd", "w", "", "the folder that the command runs in")
	f.DurationVar(&o.timeout, "timeout", 0, "end the command after this time, with exit code 124 (default: never)")
	f.DurationVar(&o.wait, "wait", agent.Patience, "how long the guest's agent may take to answer")
	f.StringVar(&o.escape, "escape", "ctrl-]", "with -t the key before . and ?, or none")
	return cmd
}

// ownFailure gives an error of vmrun's the exit code that is none of a command's.
func ownFailure(err error) error {
	if _, ok := errors.AsType[exitError](err); ok || err == nil {
		return err
	}
	return exitError{exitOwn, err}
}

func execCommand(ctx context.Context, name string, argv []string, o execOptions) error {
	c, err := o.command(argv)
	if err != nil {
		return ownFailure(usageError{"vmrun exec", err})
	}
	machine, err := oneVM(ctx, name)
	if err == nil {
		err = living(machine, "exec in")
	}
	if err != nil {
		return ownFailure(err)
	}
	return c.run(ctx, func(ctx context.Context, cmd agent.Command, ready func()) (agent.Status, error) {
		status, err := control.Exec(ctx, machine, cmd, o.wait, ready)
		if _, notRun := errors.AsType[*agent.RunError](err); err != nil && !notRun && ctx.Err() == nil {
			err = fmt.Errorf("exec in %s: %w", name, err)
		}
		return status, err
	})
}

// command checks the flags and makes the command of them.
func (o execOptions) command(argv []string) (*guestCommand, error) {
	c := &guestCommand{timeout: o.timeout, input: o.input || o.terminal || hasInput(os.Stdin)}
	c.command.Argv, c.command.Dir = argv, o.dir
	var err error
	if c.escape, err = parseEscape(o.escape); err != nil {
		return nil, err
	}
	switch {
	case o.timeout < 0:
		return nil, fmt.Errorf("--timeout %v: want a duration that is not negative", o.timeout)
	case o.wait <= 0:
		return nil, fmt.Errorf("--wait %v: want a duration above zero", o.wait)
	case o.terminal && !isTerminal(os.Stdin, os.Stdout):
		return nil, errors.New("-t: stdin and stdout are no terminal")
	}
	if c.command.Env, err = environment(o.env); err != nil {
		return nil, err
	}
	if o.terminal {
		c.terminal = true
		if kind := os.Getenv("TERM"); kind != "" {
			c.command.Env = append([]string{"TERM=" + kind}, c.command.Env...)
		}
	}
	return c, nil
}

// hasInput tells whether there may be input for a command that nobody types:
// neither a terminal nor /dev/null has any.
func hasInput(f *os.File) bool {
	var st unix.Stat_t
	null := unix.Fstat(int(f.Fd()), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3)
	return !null && !term.IsTerminal(int(f.Fd()))
}

// environment is what --env asks for.
func environment(flags []string) ([]string, error) {
	var env []string
	for _, e := range flags {
		key, _, valued := strings.Cut(e, "=")
		switch {
		case key == "":
			return nil, fmt.Errorf("--env %q: want NAME=VALUE or NAME", e)
		case valued:
			env = append(env, e)
		default:
			if value, ok := os.LookupEnv(key); ok {
				env = append(env, e+"="+value)
			}
		}
	}
	return env, nil
}

// guestCommand is a command for a guest with our own streams and signals.
type guestCommand struct {
	command  agent.Command
	terminal bool // ours is the command's
	input    bool // stdin is the command's
	escape   byte
	timeout  time.Duration // 0: none
}

// guestRun runs a command in some guest, and tells when the agent is there.
type guestRun func(ctx context.Context, c agent.Command, ready func()) (agent.Status, error)

var errCommandTimeout = errors.New("ended by --timeout")

// run runs the command and returns its exit code as an error.
func (c *guestCommand) run(ctx context.Context, run guestRun) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	if c.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, c.timeout, errCommandTimeout)
		defer cancel()
	}
	controls, ready := make(chan agent.Control, maxControls), make(chan struct{})
	c.command.Controls, c.command.Stdout, c.command.Stderr = controls, os.Stdout, os.Stderr
	if c.input {
		c.command.Stdin = os.Stdin
	}
	if c.terminal {
		t, err := c.takeTerminal(ctx, end)
		if err != nil {
			return ownFailure(err)
		}
		defer t.Close()
	}
	go passSignals(ctx, ready, controls, end)
	waiting := time.AfterFunc(progressAfter, func() { fmt.Fprint(os.Stderr, "vmrun: waiting for the guest's agent\r\n") })
	status, err := run(ctx, c.command, func() {
		waiting.Stop()
		close(ready)
	})
	waiting.Stop()
	return commandEnd(ctx, status, err)
}

// commandEnd is how a command ended, as an error with its exit code.
func commandEnd(ctx context.Context, status agent.Status, err error) error {
	if notRun, ok := errors.AsType[*agent.RunError](err); ok {
		return exitError{notRun.Code, err}
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		if s, ok := errors.AsType[signalError](cause); ok {
			return exitError{exitSignal + int(s.signal), cause}
		}
		if errors.Is(cause, errCommandTimeout) || errors.Is(cause, errTimeout) {
			return exitError{exitTimeout, cause}
		}
		return ownFailure(cause)
	}
	if err != nil {
		return ownFailure(err)
	}
	if code := status.ExitCode(); code != 0 {
		return exitError{code: code}
	}
	return nil
}

// takeTerminal makes our terminal the command's.
func (c *guestCommand) takeTerminal(ctx context.Context, end context.CancelCauseFunc) (*terminal, error) {
	executable, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c.command.TTY, err = terminalSize(os.Stdout)
	if err != nil {
		return nil, err
	}
	t, err := openTerminal(os.Stdin, os.Stdout, executable)
	if err != nil {
		return nil, err
	}
	go t.suspendable(ctx)
	r, w := io.Pipe()
	c.command.Stdin = r
	go func() {
		defer w.Close()
		typeKeys(os.Stdin, w, &escapeParser{key: c.escape}, end)
	}()
	return t, nil
}

// typeKeys passes on what is typed until the escape ends it, or the terminal is
// gone: no command outlives that by not listening to SIGHUP.
func typeKeys(from io.Reader, to io.Writer, p *escapeParser, end context.CancelCauseFunc) {
	buf := make([]byte, 256)
	for {
		n, err := from.Read(buf)
		var send []byte
		for _, b := range buf[:n] {
			typed, act := p.next(b)
			send = append(send, typed...)
			switch act {
			case actEnd:
				end(errEscape)
				return
			case actHelp:
				help := escapeHelp(p.key, "end the command")
				fmt.Fprint(os.Stderr, strings.ReplaceAll(help, "\n", "\r\n"))
			}
		}
		if _, failed := to.Write(send); failed != nil {
			return
		}
		if err != nil {
			end(signalError{unix.SIGHUP})
			return
		}
	}
}

func terminalSize(f *os.File) (*agent.Size, error) {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return nil, fmt.Errorf("read the terminal's size: %w", err)
	}
	return &agent.Size{Rows: size.Row, Cols: size.Col}, nil
}
