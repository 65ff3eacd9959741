package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// QGA is qemu-guest-agent, of version 2.5 or newer. It takes a command's whole
// input before it starts it, returns its output when it has ended, and has no
// terminals. Signals reach the command alone and not its children.
type QGA struct {
	channel  *channel
	patience time.Duration
}

// NewQGA makes an agent of the host's end of the port QGAPort, which Close
// closes. It need not be served yet.
func NewQGA(conn net.Conn) *QGA { return &QGA{channel: newChannel(conn), patience: Patience} }

// Close ends the connection, and fails all that is under way.
func (q *QGA) Close() error { return q.channel.conn.Close() }

// Ready implements Agent.
func (q *QGA) Ready(ctx context.Context) error {
	for {
		// An agent that starts later finds what it was asked before.
		err := q.channel.call(ctx, lastRetry, "guest-ping", nil, nil)
		if _, silent := errors.AsType[*NoAnswerError](err); !silent || ctx.Err() != nil {
			return err
		}
	}
}

// call is a command that is answered at once.
func (q *QGA) call(ctx context.Context, command string, args, result any) error {
	return q.channel.call(ctx, q.patience, command, args, result)
}

// maxInput is how much input a command may have, in bytes.
const maxInput = 16 << 20

// Run implements Agent.
func (q *QGA) Run(ctx context.Context, c Command) (Status, error) {
	if c.TTY != nil {
		return Status{}, ErrNoTerminal
	}
	input, err := readInput(ctx, c.Stdin)
	if err != nil {
		return Status{}, err
	}
	pid, err := q.start(ctx, c, input)
	if err != nil {
		return Status{}, err
	}
	ended, err := q.await(ctx, pid, c.Controls)
	if err != nil {
		if ctx.Err() != nil {
			q.hangUp(pid)
		}
		return Status{}, err
	}
	return ended.status(), ended.write(c.Stdout, c.Stderr)
}

// readInput reads a command's input.
func readInput(ctx context.Context, from io.Reader) ([]byte, error) {
	if from == nil {
		return nil, nil
	}
	type result struct {
		input []byte
		err   error
	}
	done := make(chan result, 1)
	go func() {
		input, err := io.ReadAll(io.LimitReader(from, maxInput+1))
		done <- result{input, err}
	}()
	select {
	case r := <-done:
		if len(r.input) > maxInput {
			return nil, fmt.Errorf("read input: qemu-guest-agent takes no more than %d MiB: copy a file instead", maxInput>>20)
		}
		return r.input, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// start starts a command and returns its process's id in the guest.
func (q *QGA) start(ctx context.Context, c Command, input []byte) (pid int, err error) {
	if len(c.Argv) == 0 {
		return 0, &RunError{Code: codeNotRun, Cause: "no command"}
	}
	argv := inPlace(c)
	args := map[string]any{"path": argv[0], "arg": argv[1:], "capture-output": true}
	if len(input) > 0 {
		args["input-data"] = input
	}
	var started struct{ PID int }
	err = q.call(ctx, "guest-exec", args, &started)
	if refused, ok := errors.AsType[*QGAError](err); ok && refused.Class != classNotFound {
		return 0, &RunError{Code: codeNotFound, Cause: refused.Desc}
	}
	return started.PID, err
}

// inPlace is the command line with what the protocol has no words for: a folder,
// and additions to the environment.
func inPlace(c Command) []string {
	argv := c.Argv
	if len(c.Env) > 0 {
		argv = append(append([]string{"env"}, c.Env...), argv...)
	}
	if c.Dir != "" {
		argv = append([]string{"/bin/sh", "-c", `cd -- "$0" && exec "$@"`, c.Dir}, argv...)
	}
	return argv
}

// outcome is what guest-exec-status tells.
type outcome struct {
	Exited       bool
	ExitCode     int
	Signal       int
	OutData      []byte `json:"out-data"`
	ErrData      []byte `json:"err-data"`
	OutTruncated bool   `json:"out-truncated"`
	ErrTruncated bool   `json:"err-truncated"`
}

// How often a command is asked after: what is short is not to wait, and what is
// long not to be disturbed.
const (
	firstPoll = 5 * time.Millisecond
	lastPoll  = 500 * time.Millisecond
)

// await waits for the end of a command, and passes on signals meanwhile.
func (q *QGA) await(ctx context.Context, pid int, controls <-chan Control) (outcome, error) {
	for poll := firstPoll; ; poll = min(poll*3/2, lastPoll) {
		var o outcome
		err := q.call(ctx, "guest-exec-status", map[string]int{"pid": pid}, &o)
		if err != nil || o.Exited {
			return o, err
		}
		select {
		case c, ok := <-controls:
			if !ok {
				controls = nil
			}
			if c.Signal != 0 {
				err = q.signal(ctx, pid, unix.Signal(c.Signal))
			}
			poll = firstPoll
		case <-time.After(poll):
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		if err != nil {
			return o, err
		}
	}
}

// signal sends a signal by the guest's shell, since programs that do are not
// everywhere.
func (q *QGA) signal(ctx context.Context, pid int, s unix.Signal) error {
	argv := []string{"-c", `kill -"$0" "$1"`, strconv.Itoa(int(s)), strconv.Itoa(pid)}
	return q.call(ctx, "guest-exec", map[string]any{"path": "/bin/sh", "arg": argv}, nil)
}

// hangUp ends a command that nobody waits for any more.
func (q *QGA) hangUp(pid int) {
	ctx, cancel := context.WithTimeout(context.Background(), q.patience)
	defer cancel()
	q.signal(ctx, pid, unix.SIGHUP) // a guest that does not answer ends it or not, as it likes
}

func (o outcome) status() Status { return Status{Code: o.ExitCode, Signal: o.Signal} }

// write passes on a command's output.
func (o outcome) write(stdout, stderr io.Writer) error {
	for _, part := range []struct {
		to   io.Writer
		data []byte
	}{{stdout, o.OutData}, {stderr, o.ErrData}} {
		if part.to != nil {
			io.Copy(part.to, bytes.NewReader(part.data)) // who does not take it does not want it
		}
	}
	if o.OutTruncated || o.ErrTruncated {
		return errors.New("qemu-guest-agent keeps no more than 16 MiB of output, so its end is lost: write to a file and copy that")
	}
	return nil
}
