package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/agent"
	"github.com/vmrun/vmrun/vm/wire"
)

// The bytes of commands and files go through pipes that come along with the
// request, so that a signal never waits behind input that nobody reads.

// execArgs ask for a command in the guest. Three pipes come along: for stdin,
// stdout and stderr.
type execArgs struct {
	Argv []string      `json:"argv"`
	Env  []string      `json:"env,omitempty"`
	Dir  string        `json:"dir,omitempty"`
	TTY  *agent.Size   `json:"tty,omitempty"`
	Dry  bool          `json:"dry,omitempty"` // no input comes through the first pipe
	Wait time.Duration `json:"wait_ns"`       // for the agent
}

// execResult is how the command ended. NotRun says why it could not be run.
type execResult struct {
	Code   int    `json:"code,omitempty"`
	Signal int    `json:"signal,omitempty"`
	NotRun string `json:"not_run,omitempty"`
}

// putArgs ask for files to be put into the guest; a pipe with them comes along.
type putArgs struct {
	Path string        `json:"path"`
	Name string        `json:"name"`
	Wait time.Duration `json:"wait_ns"`
}

// getArgs ask for files of the guest; a pipe for them comes along.
type getArgs struct {
	Path string        `json:"path"`
	Wait time.Duration `json:"wait_ns"`
}

// agentReady is sent as soon as the agent has answered.
type agentReady struct{}

// agentSize is sent when it is known how many bytes follow, if nothing changes
// meanwhile.
type agentSize struct {
	Size int64 `json:"size"`
}

// inhabited is a machine with a way into its guest.
type inhabited interface {
	Agent() agent.Agent
	Done() <-chan struct{}
	State() vm.State
	PID() int
}

// agentCall is a request that came with pipes, once the agent has answered.
type agentCall struct {
	agent   agent.Agent
	stream  *wire.Stream
	pipes   []*os.File
	unwatch func() // goes on whether or not QEMU was stopped by a signal
}

// withAgent is a request for the guest's agent that comes with some pipes.
func withAgent[A any](m inhabited, pipes int, wait func(A) time.Duration, do func(context.Context, A, agentCall) (any, error)) wire.Handler {
	return func(ctx context.Context, c *wire.Call) (any, error) {
		args, err := decode[A](c)
		if err != nil {
			return nil, err
		}
		if len(c.Files) != pipes {
			return nil, wire.Refuse(wire.KindUsage, "%d files came with the request; want %d", len(c.Files), pipes)
		}
		ctx, unwatch := unlessStopped(ctx, "QEMU", m.PID())
		defer unwatch()
		call := agentCall{agent: m.Agent(), pipes: c.TakeFiles(), unwatch: unwatch}
		defer closePipes(call.pipes)
		if call.stream, err = c.Start(); err != nil {
			return nil, err
		}
		err = awaitReady(ctx, call.agent, wait(args))
		if err == nil {
			err = call.stream.Send(agentReady{})
		}
		if err != nil {
			return nil, agentRefusal(ctx, m, err)
		}
		result, err := do(ctx, args, call)
		return result, agentRefusal(ctx, m, err)
	}
}

func closePipes(pipes []*os.File) {
	for _, p := range pipes {
		p.Close()
	}
}

// awaitReady waits longer for an agent than the agent itself would.
func awaitReady(ctx context.Context, a agent.Agent, wait time.Duration) error {
	if wait <= 0 {
		wait = agent.Patience
	}
	return agent.Answered(ctx, a, wait)
}

// agentRefusal is an error as the client is to see it.
func agentRefusal(ctx context.Context, m inhabited, err error) error {
	if err == nil {
		return nil
	}
	if silent, ok := errors.AsType[*agent.NoAnswerError](err); ok {
		if why := vm.StoppedProcess("QEMU", m.PID()); why != "" {
			return wire.Refuse(wire.KindDeadline, "no agent answered in %v: %s", silent.After, why)
		}
		if m.State().Phase == vm.Paused {
			return wire.Refuse(wire.KindState, "no agent answered in %v: the virtual machine is paused", silent.After)
		}
		return wire.Refuse(wire.KindDeadline, "%v", err)
	}
	select {
	case <-m.Done():
		return wire.Refuse(wire.KindState, "the virtual machine has ended")
	default:
	}
	if gaveUp, ok := errors.AsType[*wire.Refusal](context.Cause(ctx)); ok {
		return gaveUp
	}
	return err
}

// serveExec runs a command. It stands still with its guest, and goes on with it.
func serveExec(ctx context.Context, a execArgs, call agentCall) (any, error) {
	call.unwatch()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	controls := make(chan agent.Control)
	go func() {
		for {
			p, err := call.stream.Receive()
			if err != nil {
				return
			}
			p.Close()
			var c agent.Control
			if p.Decode(&c) != nil {
				continue
			}
			select {
			case controls <- c:
			case <-ctx.Done():
				return
			}
		}
	}()
	command := agent.Command{
		Argv: a.Argv, Env: a.Env, Dir: a.Dir, TTY: a.TTY,
		Stdin: call.pipes[0], Stdout: call.pipes[1], Stderr: call.pipes[2], Controls: controls,
	}
	if a.Dry {
		command.Stdin = nil
	}
	status, err := call.agent.Run(ctx, command)
	if e, ok := errors.AsType[*agent.RunError](err); ok {
		return execResult{Code: e.Code, NotRun: e.Cause}, nil
	}
	return execResult{Code: status.Code, Signal: status.Signal}, err
}

func servePut(ctx context.Context, a putArgs, call agentCall) (any, error) {
	stop := context.AfterFunc(ctx, func() { closePipes(call.pipes) })
	defer stop()
	return nil, call.agent.Put(ctx, a.Path, a.Name, call.pipes[0])
}

func serveGet(ctx context.Context, a getArgs, call agentCall) (any, error) {
	stop := context.AfterFunc(ctx, func() { closePipes(call.pipes) })
	defer stop()
	return nil, call.agent.Get(ctx, a.Path, func(n int64) { call.stream.Send(agentSize{n}) }, call.pipes[0])
}

// Exec runs a command in a machine's guest, as agent.Agent does. It waits for the
// agent, for agent.Patience if wait is 0, and calls ready, unless that is nil,
// when the agent has answered. When the context ends, so does the command.
func Exec(ctx context.Context, m vm.Machine, c agent.Command, wait time.Duration, ready func()) (agent.Status, error) {
	var p pipes
	defer p.close()
	stdin, stdout, stderr := p.toGuest(), p.fromGuest(), p.fromGuest()
	s, err := p.open(ctx, m, "exec", execArgs{Argv: c.Argv, Env: c.Env, Dir: c.Dir, TTY: c.TTY, Dry: c.Stdin == nil, Wait: wait})
	if err != nil {
		return agent.Status{}, err
	}
	defer s.Close()
	go func() {
		defer stdin.Close()
		if c.Stdin != nil {
			io.Copy(stdin, c.Stdin) // a command need not read all
		}
	}()
	var outputs sync.WaitGroup
	outputs.Go(func() { drainOutput(c.Stdout, stdout) })
	outputs.Go(func() { drainOutput(c.Stderr, stderr) })
	go passOn(s, c.Controls)
	var result execResult
	if err := reply(s, ready, nil, &result); err != nil {
		return agent.Status{}, Explain(ctx, m, err)
	}
	outputs.Wait()
	if result.NotRun != "" {
		return agent.Status{}, &agent.RunError{Code: result.Code, Cause: result.NotRun}
	}
	return agent.Status{Code: result.Code, Signal: result.Signal}, nil
}

// passOn sends what is for a command that runs.
func passOn(s *wire.ClientStream, controls <-chan agent.Control) {
	for {
		select {
		case c, more := <-controls:
			if !more || s.Send(c) != nil {
				return
			}
		case <-s.Context().Done():
			return
		}
	}
}

// drainOutput copies a command's output. Where nobody takes it, the command is told.
func drainOutput(to io.Writer, from *os.File) {
	defer from.Close()
	if to == nil {
		to = io.Discard
	}
	io.Copy(to, from)
}

// Put puts files into a machine's guest, as agent.Agent does; wait and ready are
// as in Exec.
func Put(ctx context.Context, m vm.Machine, target, name string, files io.Reader, wait time.Duration, ready func()) error {
	var p pipes
	defer p.close()
	to := p.toGuest()
	s, err := p.open(ctx, m, "put", putArgs{Path: target, Name: name, Wait: wait})
	if err != nil {
		return err
	}
	defer s.Close()
	go func() {
		io.Copy(to, files) // what breaks off has no end mark, and is refused there
		to.Close()
	}()
	return Explain(ctx, m, reply(s, ready, nil, nil))
}

// Get writes files of a machine's guest to files, as agent.Agent does; wait and
// ready are as in Exec.
func Get(ctx context.Context, m vm.Machine, path string, size func(int64), files io.Writer, wait time.Duration, ready func()) error {
	var p pipes
	defer p.close()
	from := p.fromGuest()
	s, err := p.open(ctx, m, "get", getArgs{Path: path, Wait: wait})
	if err != nil {
		return err
	}
	defer s.Close()
	copied := make(chan error, 1)
	go func() {
		_, err := io.Copy(files, from)
		from.Close()
		copied <- err
	}()
	err = reply(s, ready, size, nil)
	if failed := <-copied; err == nil {
		err = failed
	}
	return Explain(ctx, m, err)
}

// pipes are those of one request: our ends, and the supervisor's.
type pipes struct {
	ours, theirs []*os.File
	err          error
}

func (p *pipes) make() (r, w *os.File) {
	if p.err == nil {
		r, w, p.err = os.Pipe()
	}
	return r, w
}

// toGuest makes a pipe, whose end to write to is ours.
func (p *pipes) toGuest() *os.File {
	r, w := p.make()
	p.ours, p.theirs = append(p.ours, w), append(p.theirs, r)
	return w
}

// fromGuest makes a pipe, whose end to read from is ours.
func (p *pipes) fromGuest() *os.File {
	r, w := p.make()
	p.ours, p.theirs = append(p.ours, r), append(p.theirs, w)
	return r
}

// open makes a request with the supervisor's ends, of which no copies stay here.
func (p *pipes) open(ctx context.Context, m vm.Machine, verb string, args any) (*wire.ClientStream, error) {
	if p.err != nil {
		return nil, fmt.Errorf("make pipe: %w", p.err)
	}
	defer closePipes(p.theirs)
	return start(ctx, m, wire.Request{Verb: verb, Args: args, Files: p.theirs})
}

func (p *pipes) close() { closePipes(p.ours) }

// reply waits for a request's reply, and passes on what is told before.
func reply(s *wire.ClientStream, ready func(), size func(int64), result any) error {
	for {
		p, err := s.Receive()
		if done, ok := errors.AsType[*wire.Done](err); ok {
			if done.Err != nil {
				return done.Err
			}
			return done.Decode(result)
		}
		if err != nil {
			return err
		}
		p.Close()
		var told agentSize
		switch {
		case p.Decode(&told) != nil:
		case told.Size > 0 && size != nil:
			size(told.Size)
		case ready != nil:
			ready()
		}
	}
}
