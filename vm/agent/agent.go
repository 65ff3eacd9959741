// Package agent runs commands in a guest and moves files, by a program in the
// guest that serves a virtio-serial port: vmrun's own, which is in every micro
// guest, or QEMU's, which distributions have as the package qemu-guest-agent.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/vmrun/vmrun/images/guest/wire"
)

// Patience is how long an agent may take to answer when nobody says otherwise.
// It is not how long a command may take.
const Patience = 5 * time.Second

// Agent is a way into a guest. Its methods may be called from several
// goroutines, and any number of them may be at work at once.
//
// Where nothing answers for Patience the error is a *NoAnswerError, unless the
// context ends first: then it is the context's.
type Agent interface {
	// Ready waits, as long as the context lasts, for the agent's first answer.
	Ready(context.Context) error
	// Run runs a command until it has ended. When the context ends, so does the
	// command. A command that could not be run gives a *RunError.
	Run(context.Context, Command) (Status, error)
	// Put puts files from a stream of package tree at target in the guest, or
	// where this is a folder, into it as name.
	Put(ctx context.Context, target, name string, files io.Reader) error
	// Get writes the file or folder at path to a stream of package tree. As soon
	// as it is known how many bytes follow, if nothing changes meanwhile, size is
	// called.
	Get(ctx context.Context, path string, size func(int64), files io.Writer) error
}

// Command is a command for a guest.
type Command struct {
	Argv []string
	Env  []string // KEY=VALUE, besides the agent's own
	Dir  string   // "": the agent's own
	TTY  *Size    // gives it a terminal of this size; all its output is on Stdout then

	// Stdin is read until its end, and maybe beyond the command's. nil: empty, which
	// takes a guest less time. Whoever wants a Read to end that hangs has to see to it.
	Stdin io.Reader
	// Stdout and Stderr get the output; nil: nobody does. When a Write fails the
	// command is told that nobody reads.
	Stdout, Stderr io.Writer
	// Controls are passed on while the command runs; nil: there are none.
	Controls <-chan Control
}

type (
	// Size is a terminal's, in characters.
	Size = wire.Size
	// Control is a signal to a command, or another size of its terminal.
	Control = wire.Control
)

// Status is how a command ended.
type Status struct {
	Code   int // exit code
	Signal int // that ended it; 0: none
}

// signalled is added to a signal's number in an exit code, as shells do.
const signalled = 128

// ExitCode is the status as one number, as shells have it.
func (s Status) ExitCode() int {
	if s.Signal != 0 {
		return signalled + s.Signal
	}
	return s.Code
}

// NoAnswerError says that no agent answered in time.
type NoAnswerError struct {
	After time.Duration
	Cause string // what is likely the matter, as a question
}

func (e *NoAnswerError) Error() string {
	return fmt.Sprintf("no agent answered in %v: %s", e.After, e.Cause)
}

// RunError says that a command could not be run.
type RunError struct {
	Code  int // a shell's exit code for it: 127 not found, 126 all else
	Cause string
}

func (e *RunError) Error() string { return e.Cause }

// Exit codes of a RunError.
const (
	codeNotRun   = 126
	codeNotFound = 127
)

// ErrClosed says that the machine of the guest has ended.
var ErrClosed = wire.ErrClosed

// ErrNoTerminal says that an agent has no terminal for a command.
var ErrNoTerminal = errors.New("qemu-guest-agent has no terminals for commands")

// Answered waits until an agent has answered, at most for patience.
func Answered(ctx context.Context, a Agent, patience time.Duration) error {
	cause := qgaSilent
	if _, own := a.(*VMRun); own {
		cause = vmrunSilent
	}
	return answered(ctx, patience, cause, a.Ready)
}

// answered waits for f, which is to answer within patience.
func answered(ctx context.Context, patience time.Duration, cause string, f func(context.Context) error) error {
	limited, cancel := context.WithTimeoutCause(ctx, patience, &NoAnswerError{patience, cause})
	defer cancel()
	return f(limited)
}
