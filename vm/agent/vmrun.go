package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/vmrun/vmrun/images/guest/wire"
)

// VMRun is vmrun's own agent. It has all that Agent promises: streams,
// terminals, signals to whole process groups.
type VMRun struct {
	conn     net.Conn
	mux      *wire.Mux
	patience time.Duration
	ended    chan struct{} // closed when the connection has ended

	mu      sync.Mutex
	session string
	up      bool  // the guest has answered in this session
	seen    bool  // the guest has answered at least once
	refused error // it answered that it is of no use
	console consoleSize
	changed chan struct{} // closed and replaced when one of these has changed
}

// VMRunPort is the name of the virtio-serial port that vmrun's agent serves.
const VMRunPort = wire.PortName

const vmrunSilent = "has the guest booted, and does it have vmrun's agent?"

// NewVMRun makes an agent of the host's end of the port VMRunPort, which
// Close closes. It need not be served yet.
func NewVMRun(conn net.Conn) *VMRun {
	a := &VMRun{
		conn: conn, patience: Patience, ended: make(chan struct{}),
		session: rand.Text(), changed: make(chan struct{}),
	}
	a.mux = wire.NewMux(conn, (*session)(a))
	a.hello(false)
	go func() {
		defer close(a.ended)
		a.mux.Run()
	}()
	return a
}

// Close ends the connection, and fails all that is under way.
func (a *VMRun) Close() error {
	err := a.conn.Close()
	<-a.ended
	return err
}

// Answered tells that the agent has answered at least once.
func (a *VMRun) Answered() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.seen
}

// session is the agent as the handler of its connection.
type session VMRun

// Hello implements wire.Handler.
func (s *session) Hello(h wire.Hello) {
	a := (*VMRun)(s)
	a.mu.Lock()
	defer a.mu.Unlock()
	switch h.Session {
	case a.session:
		a.up, a.seen, a.refused = true, true, nil
		if h.Version != wire.Version {
			a.refused = fmt.Errorf("the agent in the guest speaks version %d of the protocol, this vmrun version %d", h.Version, wire.Version)
		}
		a.tell()
		a.tellConsole()
	case "":
		// It has just started, and knows nothing of what was before.
		a.restart()
	}
}

// Lost implements wire.Handler.
func (s *session) Lost() {
	a := (*VMRun)(s)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.restart()
}

// Opened implements wire.Handler. Only the host asks.
func (s *session) Opened(stream *wire.Stream, _ wire.Request) { stream.Close() }

// restart begins another session, unless this one has not begun. The caller
// holds mu.
func (a *VMRun) restart() {
	a.console.told = Size{}
	if a.up {
		a.mux.Reset()
		a.session, a.up = rand.Text(), false
		a.tell()
	}
	a.hello(true)
}

// hello asks for an answer, if the last time was heard: what a guest that reads
// nothing is told must not pile up.
func (a *VMRun) hello(padding bool) {
	if a.mux.Idle() {
		a.mux.Hello(wire.Hello{Version: wire.Version, Session: a.session, Agent: "vmrun"}, padding)
	}
}

func (a *VMRun) tell() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// How often an agent that does not answer is asked again.
const (
	firstRetry = 250 * time.Millisecond
	lastRetry  = 2 * time.Second
)

// Ready implements Agent.
func (a *VMRun) Ready(ctx context.Context) error {
	for retry := firstRetry; ; retry = min(2*retry, lastRetry) {
		a.mu.Lock()
		up, refused, changed := a.up, a.refused, a.changed
		a.mu.Unlock()
		if up {
			return refused
		}
		select {
		case <-changed:
		case <-a.ended:
			return ErrClosed
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(retry):
			a.ask()
		}
	}
}

func (a *VMRun) ask() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.hello(true)
}

// doubt makes the next request wait for a sign of life. What is under way goes
// on if the agent still knows the session.
func (a *VMRun) doubt() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.up = false
	a.hello(true)
}

// open begins a request, with channels that are ended from the beginning, and
// returns when the guest has begun with it. The caller closes or cancels the stream.
func (a *VMRun) open(ctx context.Context, r wire.Request, ended ...byte) (*wire.Stream, error) {
	var s *wire.Stream
	err := answered(ctx, a.patience, vmrunSilent, func(ctx context.Context) (err error) {
		if err := a.Ready(ctx); err != nil {
			return err
		}
		if s, err = a.mux.Open(r, ended...); err != nil {
			return err
		}
		var result wire.Result
		kind, err := s.Message(ctx, map[wire.Kind]any{wire.KindStarted: &wire.Started{}, wire.KindResult: &result})
		if kind == wire.KindResult {
			err = failure(result)
		}
		return err
	})
	if err != nil && s != nil {
		s.Cancel()
	}
	if _, silent := errors.AsType[*NoAnswerError](err); silent {
		a.doubt()
	}
	return s, err
}

// failure is what a result says went wrong, and is never nil for one that comes
// too early.
func failure(r wire.Result) error {
	switch {
	case r.Code != 0 && r.Error != "":
		return &RunError{Code: r.Code, Cause: r.Error}
	case r.Error != "":
		return errors.New(r.Error)
	}
	return errors.New("the agent in the guest ended a request that it had not begun")
}

// Run implements Agent.
func (a *VMRun) Run(ctx context.Context, c Command) (Status, error) {
	r := wire.Request{Exec: &wire.Exec{Argv: c.Argv, Env: c.Env, Dir: c.Dir, TTY: c.TTY}}
	var ended []byte
	if c.Stdin == nil {
		ended = []byte{wire.Stdin}
	}
	s, err := a.open(ctx, r, ended...)
	if err != nil {
		return Status{}, err
	}
	defer s.Cancel()
	if c.Stdin != nil {
		go send(s, c.Stdin)
	}
	outputs := make(chan struct{})
	go func() {
		defer close(outputs)
		receive(s, map[byte]io.Writer{wire.Stdout: c.Stdout, wire.Stderr: c.Stderr})
	}()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go control(ctx, s, c.Controls)
	var result wire.Result
	if _, err := s.Message(ctx, map[wire.Kind]any{wire.KindResult: &result}); err != nil {
		return Status{}, err
	}
	select {
	case <-outputs:
	case <-ctx.Done():
		return Status{}, context.Cause(ctx)
	}
	if result.Error != "" {
		return Status{}, failure(result)
	}
	return Status{Code: result.Code, Signal: result.Signal}, nil
}

// send sends a command's input.
func send(s *wire.Stream, from io.Reader) {
	to := s.Writer(wire.Stdin)
	defer to.Close()
	io.Copy(to, from) // a command need not read all, and an input that fails is at its end
}

// receive writes the output of a stream until all of it has ended.
func receive(s *wire.Stream, to map[byte]io.Writer) {
	var all sync.WaitGroup
	for channel, w := range to {
		all.Go(func() {
			r := s.Reader(channel)
			defer r.Close()
			if w == nil {
				w = io.Discard
			}
			io.Copy(w, r) // where nobody takes it, the guest is told by Close
		})
	}
	all.Wait()
}

func control(ctx context.Context, s *wire.Stream, controls <-chan Control) {
	for {
		select {
		case c, ok := <-controls:
			if !ok || s.Send(wire.KindControl, c) != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// Put implements Agent.
func (a *VMRun) Put(ctx context.Context, target, name string, files io.Reader) error {
	s, err := a.open(ctx, wire.Request{Put: &wire.Put{Path: target, Name: name}})
	if err != nil {
		return err
	}
	defer s.Cancel()
	go func() {
		to := s.Writer(wire.Stdin)
		// Without an end of its own a stream is not whole, so that an error here
		// becomes one there.
		io.Copy(to, files)
		to.Close()
	}()
	return finish(ctx, s, nil)
}

// Get implements Agent.
func (a *VMRun) Get(ctx context.Context, path string, size func(int64), files io.Writer) error {
	s, err := a.open(ctx, wire.Request{Get: &wire.Get{Path: path}})
	if err != nil {
		return err
	}
	defer s.Cancel()
	copied := make(chan error, 1)
	go func() {
		r := s.Reader(wire.Stdout)
		defer r.Close()
		_, err := io.Copy(files, r)
		copied <- err
	}()
	if err := finish(ctx, s, size); err != nil {
		return err
	}
	select {
	case err := <-copied:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// finish waits for a request's result, and passes on its size.
func finish(ctx context.Context, s *wire.Stream, size func(int64)) error {
	for {
		var started wire.Started
		var result wire.Result
		kind, err := s.Message(ctx, map[wire.Kind]any{wire.KindStarted: &started, wire.KindResult: &result})
		switch {
		case err != nil:
			return err
		case kind == wire.KindStarted && size != nil:
			size(started.Size)
		case kind == wire.KindResult && result.Error != "":
			return errors.New(result.Error)
		case kind == wire.KindResult:
			return nil
		}
	}
}
