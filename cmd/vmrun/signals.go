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
func listen() (endings <-chan os.Signal, stop func()) {
	ch := make(chan os.Signal, 4)
	for _, s := range []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT} {
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
// signalError as its cause. It returns that signal, or 0.
func untilSignal(ctx context.Context, signals <-chan os.Signal, f func(context.Context)) unix.Signal {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(ctx)
	}()
	select {
	case <-done:
		return 0
	case s := <-signals:
		cancel(signalError{s.(unix.Signal)})
		<-done
		return s.(unix.Signal)
	}
}

// suspendable lets the terminal's owner stop and continue this process: the
// guest runs on meanwhile, and the shell gets a terminal that is not raw. It
// ends with ctx.
func (t *terminal) suspendable(ctx context.Context) {
	stops := make(chan os.Signal, 1)
	signal.Notify(stops, unix.SIGTSTP)
	defer signal.Stop(stops)
	conts := make(chan os.Signal, 1)
	signal.Notify(conts, unix.SIGCONT)
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
}
