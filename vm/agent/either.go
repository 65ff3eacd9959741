package agent

import (
	"context"
	"errors"
	"io"
)

// Either is whichever agent a guest has; where it has both, vmrun's own, which
// can more.
type Either struct {
	VMRun *VMRun
	QGA   *QGA
}

// Ready implements Agent.
func (e Either) Ready(ctx context.Context) error {
	_, err := e.ready(ctx)
	return err
}

// ready waits for one of the two to answer.
func (e Either) ready(ctx context.Context) (Agent, error) {
	if e.VMRun.Answered() {
		return e.VMRun, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		agent Agent
		err   error
	}
	answers := make(chan answer, 2)
	for _, a := range []Agent{e.VMRun, e.QGA} {
		go func() { answers <- answer{a, a.Ready(ctx)} }()
	}
	first := <-answers
	if first.err == nil {
		return first.agent, nil
	}
	second := <-answers
	switch {
	case second.err == nil:
		return second.agent, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case errors.Is(first.err, ErrClosed):
		return nil, ErrClosed
	}
	return nil, errors.Join(first.err, second.err)
}

// choose is ready within patience.
func (e Either) choose(ctx context.Context) (a Agent, err error) {
	err = answered(ctx, e.QGA.patience, qgaSilent, func(ctx context.Context) (err error) {
		a, err = e.ready(ctx)
		return err
	})
	return a, err
}

// Run implements Agent.
func (e Either) Run(ctx context.Context, c Command) (Status, error) {
	a, err := e.choose(ctx)
	if err != nil {
		return Status{}, err
	}
	return a.Run(ctx, c)
}

// Put implements Agent.
func (e Either) Put(ctx context.Context, target, name string, files io.Reader) error {
	a, err := e.choose(ctx)
	if err != nil {
		return err
	}
	return a.Put(ctx, target, name, files)
}

// Get implements Agent.
func (e Either) Get(ctx context.Context, path string, size func(int64), files io.Writer) error {
	a, err := e.choose(ctx)
	if err != nil {
		return err
	}
	return a.Get(ctx, path, size, files)
}
