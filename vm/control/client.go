package control

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/wire"
)

// Patience is how long a request may take that is not about waiting.
const Patience = 10 * time.Second

// ask makes a request of a machine's supervisor and decodes its reply. It is given
// up where the supervisor was stopped by a signal.
func ask(ctx context.Context, m vm.Machine, r wire.Request, result any) error {
	watched, unwatch := unlessStopped(ctx, supervisor, m.Supervisor)
	defer unwatch()
	_, err := m.Client().Do(watched, r, result)
	return Explain(ctx, m, err)
}

// askPatiently is ask for what may take for ever. It waits also for a supervisor
// that was stopped, until the request's own time is over.
func askPatiently(ctx context.Context, m vm.Machine, r wire.Request, result any) error {
	_, err := m.Client().Do(ctx, r, result)
	return Explain(ctx, m, err)
}

// start makes a request that is a conversation, and returns when the supervisor
// has begun it. Until then the request is given up where the supervisor was
// stopped by a signal.
func start(ctx context.Context, m vm.Machine, r wire.Request) (*wire.ClientStream, error) {
	watched, unwatch := unlessStopped(ctx, supervisor, m.Supervisor)
	defer unwatch()
	s, err := m.Client().Open(watched, r)
	if err != nil {
		return nil, Explain(ctx, m, err)
	}
	if err := s.Started(); err != nil {
		return nil, errors.Join(Explain(ctx, m, err), s.Close())
	}
	return s, nil
}

// supervisor is what clients call the process that they ask.
const supervisor = "its supervisor"

// socketSince is the first version of state.json whose supervisors listen.
const socketSince = 2

// Explain says more of an error of asking a machine's supervisor where more can
// be known. A machine that has ended meanwhile gives a *wire.Refusal of
// KindEnded, when nothing is left of it.
func Explain(ctx context.Context, m vm.Machine, err error) error {
	switch {
	case err == nil, ctx.Err() != nil:
		return err
	case errors.Is(err, wire.ErrNoAnswer):
		for what, pid := range map[string]int{supervisor: m.Supervisor, "QEMU": m.QEMU} {
			if why := vm.StoppedProcess(what, pid); why != "" {
				return wire.Refuse(wire.KindDeadline, "%s", why)
			}
		}
		return wire.Refuse(wire.KindDeadline, "its supervisor (process %d) gave %v", m.Supervisor, err)
	case m.Version != 0 && m.Version < socketSince && wire.NobodyListens(err):
		return wire.Refuse(wire.KindState, "it runs under an older vmrun, which can't be asked; end it where it was started")
	case errors.Is(err, io.ErrUnexpectedEOF), wire.NobodyListens(err):
		return fate(ctx, m)
	}
	return err
}

// How long a machine that does not answer any more may take to be gone.
const (
	fatePatience = 2 * time.Second
	fateInterval = 5 * time.Millisecond
)

// fate says what became of a machine whose supervisor does not answer any more.
func fate(ctx context.Context, m vm.Machine) error {
	for range fatePatience / fateInterval {
		switch m.Fate(ctx) {
		case vm.Ended:
			return wire.Refuse(wire.KindEnded, "it has ended")
		case vm.Dead:
			return wire.Refuse(wire.KindState, "its supervisor died; vmrun gc forgets it")
		}
		select {
		case <-time.After(fateInterval):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return wire.Refuse(wire.KindState, "its supervisor went away without a word")
}

// HasEnded tells whether an error says that the machine has ended.
func HasEnded(err error) bool {
	r, ok := errors.AsType[*wire.Refusal](err)
	return ok && r.Kind == wire.KindEnded
}
