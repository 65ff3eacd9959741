package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/vmrun/vmrun/profiles"
)

// Exit codes of run, and of snapshot restore, which launches as it does. exec has its
// own; other commands end with 0, exitFailed or exitUsage. A code above 128 says, of
// any, that a signal ended vmrun, after an orderly teardown.
const (
	exitFailed  = 1
	exitUsage   = 2   // bad usage, or a bad profile
	exitHost    = 3   // the host can't: something is missing or not permitted
	exitQEMU    = 4   // QEMU did not start, or ended without a reason
	exitPanic   = 5   // the guest panicked
	exitTimeout = 124 // --timeout passed
	exitSignal  = 128
)

// exitError gives an error its exit code. A nil cause says that all has been
// told already.
type exitError struct {
	code  int
	cause error
}

func (e exitError) Error() string {
	if e.cause == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.cause.Error()
}

func (e exitError) Unwrap() error { return e.cause }

// usageError is a command line that makes no sense.
type usageError struct {
	command string // whose help is of use
	cause   error
}

func (e usageError) Error() string { return e.cause.Error() }

func (e usageError) Unwrap() error { return e.cause }

// exitCode is the process's exit code for what a command returned.
func exitCode(err error) int {
	if err == nil {
		return 0
	}
	if exit, ok := errors.AsType[exitError](err); ok {
		return exit.code
	}
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage
	}
	return exitFailed
}

// printError tells people what went wrong, one line for each thing, and where
// there is something to do, what that is.
func printError(w io.Writer, err error) { style{}.printError(w, err) }

func (s style) printError(w io.Writer, err error) {
	if exit, ok := errors.AsType[exitError](err); ok {
		err = exit.cause
	}
	if err == nil {
		return
	}
	if s.json {
		s.logError(w, err)
		return
	}
	if faults, ok := errors.AsType[profiles.Faults](err); ok {
		// As they are: editors and terminals jump by file:line.
		fmt.Fprintln(w, faults)
		return
	}
	for _, e := range joined(err) {
		fmt.Fprintf(w, "%s %s\n", s.paint(red, "vmrun:"), strings.ReplaceAll(e.Error(), "\n", "\n  "))
	}
	for _, h := range hints(err) {
		fmt.Fprintf(w, "%s %s\n", s.paint(cyan, "hint:"), h)
	}
}

// logError is printError for programs: a record for each thing, with hints in the
// last one.
func (s style) logError(w io.Writer, err error) {
	log := s.messages(w, false)
	var texts []string
	if faults, ok := errors.AsType[profiles.Faults](err); ok {
		texts = strings.Split(faults.Error(), "\n")
	} else {
		for _, e := range joined(err) {
			texts = append(texts, e.Error())
		}
	}
	for i, text := range texts {
		var more []any
		if h := hints(err); i == len(texts)-1 && len(h) > 0 {
			more = []any{"hints", h}
		}
		log.Error(text, more...)
	}
}

// joined are the errors that were joined to err, or err alone.
func joined(err error) []error {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		return j.Unwrap()
	}
	return []error{err}
}
