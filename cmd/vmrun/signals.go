package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// signalError says that a signal asked vmrun to end.
type signalError struct{ signal unix.Signal }

func (e signalError) Error() string {
	return fmt.Sprintf("ended by %s", unix.SignalName(e.signal))
}

// listen returns the signals by which people and systems end a program. One
// that was ignored when vmrun started, as nohup does it, stays ignored. A reader
// of our output that goes away does not end us: writing then is an error.
//
// SIGABRT, which systemd sends to a service that hangs, is among them. Else Go would
// print what each thread does, for which these send each other SIGQUIT; that is
// caught here, so each would wait in vain, ten seconds in all, and the VM would end
// without order. Our own crashes end by SIGABRT all the same.
func listen() (endings <-chan os.Signal, stop func()) {
	ch := make(chan os.Signal, 4)
	for _, s := range []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGABRT} {
		if !signal.Ignored(s) {
			signal.Notify(ch, s)
		}
	}
	pipes := make(chan os.Signal, 1) // caught and not ignored, since children inherit the latter
	signal.Notify(pipes, unix.SIGPIPE)
	return ch, func() {
		signal.Stop(ch)
		signal.Stop(pipes)
	}
}

// untilSignal runs f with a context that the first signal cancels, with a
// signalError as its cause, and waits for f, which then undoes what it has
// done. Another signal ends the waiting: finished is false. The first signal is
// returned, or 0.
func untilSignal[T any](ctx context.Context, signals <-chan os.Signal, f func(context.Context) T) (result T, first unix.Signal, finished bool) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan T, 1)
	go func() { done <- f(ctx) }()
	select {
	case result = <-done:
		return result, 0, true
	case s := <-signals:
		first = s.(unix.Signal)
		cancel(signalError{first})
	}
	for len(signals) > 0 {
		<-signals // several at once are one
	}
	select {
	case result = <-done:
		return result, first, true
	case <-signals:
		return result, first, false
	}
}

// suspendable lets the terminal's owner stop and continue this process from now
// until ctx ends: the guest runs on meanwhile, and the shell gets a terminal that
// is not raw.
func (t *terminal) suspendable(ctx context.Context) {
	stops, conts := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(stops, unix.SIGTSTP)
	signal.Notify(conts, unix.SIGCONT)
	go func() {
		defer signal.Stop(stops)
		defer signal.Stop(conts)
		for {
			select {
			case <-ctx.Done():
				return
			case <-stops:
				t.restore()
				unix.Kill(unix.Getpid(), unix.SIGSTOP)
			case <-conts:
				t.makeRaw() // in the background the kernel stops us here until fg
			}
		}
	}()
}
