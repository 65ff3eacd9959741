package agent

import (
	"context"
	"errors"

	"github.com/vmrun/vmrun/images/guest/wire"
)

// consoleSize is what the guest is to take its console's terminal for.
type consoleSize struct {
	wanted  Size
	told    Size // to the agent that is there now
	telling bool // it has not answered yet
}

// ResizeConsole tells the guest the size of the terminal at its console: now, or
// when the agent answers, and again to one that starts anew. The last call counts.
// It does not wait for the guest, and one that can't do it stays as it is.
func (a *VMRun) ResizeConsole(size Size) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.console.wanted = size
	if a.seen && !a.up {
		a.hello(true)
	}
	a.tellConsole()
}

// tellConsole tells the guest what it does not know. One request at a time is
// under way, whatever the guest does with it. The caller holds mu.
func (a *VMRun) tellConsole() {
	c := &a.console
	if !a.up || a.refused != nil || c.telling || c.wanted == c.told {
		return
	}
	size := c.wanted
	s, err := a.mux.Open(wire.Request{Console: &size})
	if err != nil {
		return // the machine has ended
	}
	c.telling, c.told = true, size
	go a.awaitConsole(s)
}

// awaitConsole waits for the answer to tellConsole's request, and tells what has
// come meanwhile. A guest that does not answer is told again when it lives.
func (a *VMRun) awaitConsole(s *wire.Stream) {
	ctx, cancel := context.WithTimeout(context.Background(), a.patience)
	defer cancel()
	_, err := s.Message(ctx, map[wire.Kind]any{wire.KindResult: &wire.Result{}})
	s.Close()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.console.telling = false
	if errors.Is(err, context.DeadlineExceeded) {
		a.console.told, a.up = Size{}, false
		a.hello(true)
	}
	a.tellConsole()
}
