// Package control lets others work with a running virtual machine: Serve answers
// at the machine's control socket for the process that launched it, and the
// other functions ask there, each for one verb.
//
// A verb is a file: what is asked and answered, the handler, and the function
// that asks. Server.verbs is the table of all.
package control

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/vmrun/vmrun/images"
	"github.com/vmrun/vmrun/profiles"
	"github.com/vmrun/vmrun/qmp"
	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/wire"
)

// Server answers at one machine's control socket.
type Server struct {
	machine *vm.Instance
	feed    *Feed
	wire    *wire.Server
	relayed sync.WaitGroup

	outcome Outcome
	over    chan struct{} // closed when outcome is final
	end     func(Outcome)
}

// Outcome is how the run that a machine was of has ended.
type Outcome struct {
	Code   int    `json:"code"`   // exit code
	By     string `json:"by"`     // whose code it is
	Reason string `json:"reason"` // a word that programs can rely on
	Error  string `json:"error,omitempty"`
}

// Serve answers for a machine until Close. What the feed is told goes to whoever
// asks for events, and so do QEMU's.
func Serve(machine *vm.Instance, feed *Feed, log *slog.Logger) *Server {
	s := &Server{machine: machine, feed: feed, over: make(chan struct{})}
	s.end = func(o Outcome) {
		s.outcome = o
		close(s.over)
	}
	events, _ := machine.QMP().Subscribe() // ends with the connection
	s.relayed.Go(func() { feed.relay(events) })
	s.wire = wire.Serve(machine.ControlSocket(), s.verbs(), uint32(os.Geteuid()), log)
	return s
}

// End tells how the run has ended to all who wait for it. It is called once.
func (s *Server) End(o Outcome) {
	s.feed.publish("vmrun", "ENDED", time.Now(), o)
	s.end(o)
}

// lastWords is how long clients have to take what was said last.
const lastWords = 2 * time.Second

// Close ends the service when all have been told, at the latest when their time
// is over.
func (s *Server) Close() {
	s.feed.events.Close()
	s.wire.Close(lastWords)
	s.relayed.Wait()
}

// verbs are all that can be asked.
func (s *Server) verbs() map[string]wire.Handler {
	m := s.machine
	return map[string]wire.Handler{
		"stop":        plain(s, s.stop),
		"kill":        plain(s, s.kill),
		"wait":        plain(s, s.wait),
		"await":       plain(s, s.await),
		"pause":       quick(s, func(ctx context.Context, _ none) (any, error) { return nil, m.Pause(ctx) }),
		"resume":      quick(s, func(ctx context.Context, _ none) (any, error) { return nil, m.Resume(ctx) }),
		"reset":       quick(s, func(ctx context.Context, _ none) (any, error) { return nil, m.Reset(ctx) }),
		"qmp":         quick(s, func(ctx context.Context, a qmpArgs) (any, error) { return runQMP(ctx, m, a) }),
		"save":        plain(s, func(ctx context.Context, a saveArgs) (any, error) { return m.Save(ctx, a.Name) }),
		"attach-disk": quick(s, func(ctx context.Context, a images.DiskSpec) (any, error) { return s.attached(m.AttachDisk(ctx, a)) }),
		"attach-nic":  quick(s, func(ctx context.Context, a profiles.NIC) (any, error) { return s.attached(m.AttachNIC(ctx, a)) }),
		"detach":      quick(s, func(ctx context.Context, a detachArgs) (any, error) { return nil, s.detach(ctx, a) }),
		"attachments": plain(s, func(context.Context, none) (any, error) { return m.Attachments(), nil }),
		"resize":      quick(s, func(ctx context.Context, a resizeArgs) (any, error) { return resize(ctx, m, a) }),
		"display": plain(s, func(context.Context, none) (any, error) {
			d, err := m.Display()
			return d, stateOf(err)
		}),
		"screenshot": s.screenshot,
		"dump":       s.dump,
		"console": stream(func(ctx context.Context, a consoleArgs, st *wire.Stream) (any, error) {
			return nil, serveConsole(ctx, m, a, st)
		}),
		"events": s.events,
		"exec":   withAgent(m, 3, func(a execArgs) time.Duration { return a.Wait }, serveExec),
		"put":    withAgent(m, 1, func(a putArgs) time.Duration { return a.Wait }, servePut),
		"get":    withAgent(m, 1, func(a getArgs) time.Duration { return a.Wait }, serveGet),
	}
}

// none is no arguments.
type none struct{}

func decode[A any](c *wire.Call) (args A, err error) {
	err = c.Decode(&args)
	return args, err
}

// plain is a request with one reply, in whose error it says what is the matter
// with QEMU.
func plain[A any](s *Server, do func(context.Context, A) (any, error)) wire.Handler {
	return func(ctx context.Context, c *wire.Call) (any, error) {
		args, err := decode[A](c)
		if err != nil {
			return nil, err
		}
		result, err := do(ctx, args)
		return result, refusal(ctx, s.machine.PID(), err)
	}
}

// quick is a plain request to QEMU, which is given up where QEMU was stopped by a
// signal.
func quick[A any](s *Server, do func(context.Context, A) (any, error)) wire.Handler {
	return func(ctx context.Context, c *wire.Call) (any, error) {
		ctx, unwatch := s.unlessStopped(ctx)
		defer unwatch()
		return plain(s, do)(ctx, c)
	}
}

// unlessStopped is a context that ends where QEMU was stopped by a signal.
func (s *Server) unlessStopped(ctx context.Context) (watched context.Context, unwatch func()) {
	return unlessStopped(ctx, "QEMU", s.machine.PID())
}

// stream is a request that goes on until one side ends it.
func stream[A any](do func(context.Context, A, *wire.Stream) (any, error)) wire.Handler {
	return func(ctx context.Context, c *wire.Call) (any, error) {
		args, err := decode[A](c)
		if err != nil {
			return nil, err
		}
		st, err := c.Start()
		if err != nil {
			return nil, err
		}
		return do(ctx, args, st)
	}
}

// refusal is an error as the client is to see it.
func refusal(ctx context.Context, qemu int, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*wire.Refusal](err); ok {
		return err
	}
	if state, ok := errors.AsType[*vm.StateError](err); ok {
		return wire.Refuse(wire.KindState, "%s", state.Text)
	}
	if refused, ok := errors.AsType[*qmp.Error](err); ok {
		return &wire.Refusal{Kind: wire.KindFailed, Text: refused.Error(), Class: refused.Class}
	}
	if ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) {
		if why := vm.StoppedProcess("QEMU", qemu); why != "" {
			return noAnswer(why)
		}
		if gaveUp, ok := errors.AsType[*wire.Refusal](context.Cause(ctx)); ok && errors.Is(ctx.Err(), context.Canceled) {
			return gaveUp
		}
		return wire.Refuse(wire.KindDeadline, "no answer in time: %v", err)
	}
	return err
}
