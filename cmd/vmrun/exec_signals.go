package main

import (
	"context"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/vm/agent"
)

// passed are the signals that a command in a guest gets as well.
var passed = []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2}

// enough is how many signals of a kind end us rather than the command alone.
const enough = 3

// maxControls is how many signals may be on their way to a command.
const maxControls = 16

// passSignals passes on signals and changes of the terminal's size until ctx
// ends. A signal that comes before the agent is ready, and the third of a kind,
// which says that the command does not listen, ends us.
func passSignals(ctx context.Context, ready <-chan struct{}, controls chan<- agent.Control, end context.CancelCauseFunc) {
	ch := make(chan os.Signal, 16)
	for _, s := range passed {
		if !signal.Ignored(s) {
			signal.Notify(ch, s)
		}
	}
	signal.Notify(ch, unix.SIGWINCH)
	defer signal.Stop(ch)
	counts := map[os.Signal]int{}
	for {
		var s os.Signal
		select {
		case s = <-ch:
		case <-ctx.Done():
			return
		}
		var c agent.Control
		if s == unix.SIGWINCH {
			size, err := terminalSize(os.Stdout)
			if err != nil {
				continue // it is none
			}
			c.Resize = size
		} else {
			c.Signal = int(s.(unix.Signal))
			if counts[s]++; counts[s] >= enough || !closed(ready) {
				end(signalError{s.(unix.Signal)})
				return
			}
		}
		select {
		case controls <- c:
		default: // it has enough to do with those that came before
		}
	}
}

func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}
