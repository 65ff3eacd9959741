package control

import (
	"context"
	"errors"
	"io"

	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/agent"
	"github.com/vmrun/vmrun/vm/wire"
)

// consoleArgs ask for the console.
type consoleArgs struct {
	Lines int `json:"lines"` // of the output so far; -1: all that is kept
}

// consoleMessage is what a client says beside its input.
type consoleMessage struct {
	Size *agent.Size `json:"size"` // of its terminal
}

// serveConsole copies the guest's output to a client, and the client's input to
// the guest. A client that is too slow misses some; the guest never waits.
func serveConsole(ctx context.Context, m *vm.Instance, a consoleArgs, s *wire.Stream) error {
	view := m.Console()
	if a.Lines >= 0 {
		view = m.ConsoleTail(a.Lines)
	}
	defer context.AfterFunc(ctx, func() { view.Close() })()
	defer view.Close()
	go takeInput(ctx, view, s)
	_, err := io.CopyBuffer(s.Writer(wire.Stdout), plainReader{view}, make([]byte, 16<<10))
	return err
}

// takeInput gives the guest what the client sends.
func takeInput(ctx context.Context, view *vm.Console, s *wire.Stream) {
	for {
		p, err := s.Receive()
		if err != nil {
			return
		}
		p.Close()
		if p.Channel == wire.Message {
			var m consoleMessage
			if p.Decode(&m) == nil && m.Size != nil {
				view.Resize(*m.Size)
			}
			continue
		}
		if p.Channel != wire.Stdin || p.End {
			continue
		}
		if _, err := view.WriteContext(ctx, p.Data); err != nil {
			return
		}
	}
}

// plainReader hides all but Read.
type plainReader struct{ io.Reader }

// Console is a connection with a machine's console.
type Console struct {
	machine vm.Machine
	stream  *wire.ClientStream
	rest    []byte
}

// OpenConsole connects with a machine's console, beginning with the last so many
// lines of its output so far, or with -1 with all that the supervisor keeps. The
// caller closes it.
func OpenConsole(ctx context.Context, m vm.Machine, lines int) (*Console, error) {
	s, err := start(ctx, m, wire.Request{Verb: "console", Args: consoleArgs{lines}})
	if err != nil {
		return nil, err
	}
	return &Console{machine: m, stream: s}, nil
}

// Read reads the guest's output; io.EOF when the guest is gone.
func (c *Console) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		got, err := c.stream.Receive()
		if done, ok := errors.AsType[*wire.Done](err); ok && done.Err == nil {
			return 0, io.EOF
		}
		if err != nil {
			return 0, Explain(context.Background(), c.machine, err)
		}
		got.Close()
		if got.Channel == wire.Stdout {
			c.rest = got.Data
		}
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// Write sends input to the guest, and waits while the guest does not take it.
func (c *Console) Write(p []byte) (int, error) { return c.stream.Writer(wire.Stdin).Write(p) }

// Resize tells the guest, where it can be told, the size of the terminal that shows
// its console. It waits while input does that the guest does not take.
func (c *Console) Resize(size agent.Size) {
	_ = c.stream.Send(consoleMessage{&size}) // fails with the stream, which Read tells
}

// Close detaches. The guest sees nothing of it.
func (c *Console) Close() error { return c.stream.Close() }
