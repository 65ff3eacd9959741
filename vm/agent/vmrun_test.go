package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/vmrun/vmrun/images/guest/wire"
)

// fakeGuest speaks vmrun's protocol as a test tells it.
type fakeGuest struct {
	*wire.Mux
	conn    net.Conn
	version int
	session chan string // of the host's hellos
	deaf    chan bool   // has an item: the next hello is not answered
	opened  chan *wire.Stream
	asked   chan wire.Request // of opened
	done    chan struct{}
}

func (g *fakeGuest) Hello(h wire.Hello) {
	select {
	case <-g.deaf:
	default:
		g.Mux.Hello(wire.Hello{Version: g.version, Session: h.Session}, false)
	}
	select {
	case g.session <- h.Session:
	default:
	}
}

func (g *fakeGuest) Opened(s *wire.Stream, r wire.Request) {
	select {
	case g.asked <- r:
	default: // the test does not look at them
	}
	g.opened <- s
}

func (g *fakeGuest) Lost() {}

func (g *fakeGuest) serve() {
	g.Run()
	close(g.done)
}

// quick is for an agent that never answers.
const quick = 50 * time.Millisecond

// newPair makes an agent and its guest, which is served when the test says so.
func newPair(t *testing.T) (*VMRun, *fakeGuest) {
	t.Helper()
	ours, theirs := net.Pipe()
	g := &fakeGuest{conn: theirs, version: wire.Version, session: make(chan string, 16), deaf: make(chan bool, 16),
		opened: make(chan *wire.Stream, 16), asked: make(chan wire.Request, 16), done: make(chan struct{})}
	g.Mux = wire.NewMux(theirs, g)
	a := NewVMRun(ours)
	t.Cleanup(func() {
		a.Close()
		theirs.Close()
	})
	return a, g
}

func answers(t *testing.T, s *wire.Stream, code int) {
	t.Helper()
	if err := errors.Join(s.Send(wire.KindStarted, wire.Started{PID: 1}), s.Send(wire.KindResult, wire.Result{Code: code})); err != nil {
		t.Error(err)
	}
}

func TestVMRunSilent(t *testing.T) {
	a, _ := newPair(t)
	a.patience = quick
	_, err := a.Run(t.Context(), Command{Argv: []string{"true"}})
	if e, ok := errors.AsType[*NoAnswerError](err); !ok || e.After != quick || !strings.Contains(err.Error(), "no agent answered in 50ms: has the guest booted") {
		t.Errorf("%v", err)
	}
	enough := errors.New("enough")
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Millisecond, enough)
	defer cancel()
	if err := a.Ready(ctx); !errors.Is(err, enough) {
		t.Errorf("given up: %v", err)
	}
}

func TestVMRunVersion(t *testing.T) {
	a, g := newPair(t)
	g.version = 99
	go g.serve()
	if err := a.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "version 99 of the protocol, this vmrun version 1") {
		t.Errorf("%v", err)
	}
}

// A hello that was lost, in a frame that the guest waits for the rest of, is said
// again.
func TestVMRunRetries(t *testing.T) {
	a, g := newPair(t)
	g.deaf <- true
	go g.serve()
	if err := a.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	if first, second := <-g.session, <-g.session; first != second {
		t.Errorf("sessions %q and %q", first, second)
	}
}

// An answer that does not come in time is an error for this request alone.
func TestVMRunLate(t *testing.T) {
	a, g := newPair(t)
	go g.serve()
	if err := a.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	running := make(chan error, 1)
	var status Status
	go func() {
		var err error
		status, err = a.Run(t.Context(), Command{Argv: []string{"running"}})
		running <- err
	}()
	first := <-g.opened
	first.Send(wire.KindStarted, wire.Started{})

	limited, cancel := context.WithTimeoutCause(t.Context(), quick, &NoAnswerError{quick, "?"})
	defer cancel()
	if _, err := a.Run(limited, Command{Argv: []string{"late"}}); err == nil {
		t.Error("an answer that did not come")
	}
	late := <-g.opened
	if _, err := late.Message(t.Context(), nil); !errors.Is(err, wire.ErrCancelled) {
		t.Errorf("the guest was not told: %v", err)
	}
	go func() { answers(t, <-g.opened, 5) }()
	if s, err := a.Run(t.Context(), Command{Argv: []string{"next"}}); err != nil || s.Code != 5 {
		t.Errorf("the next one: %+v, %v", s, err)
	}
	first.Send(wire.KindResult, wire.Result{Code: 3})
	if err := <-running; err != nil || status.Code != 3 {
		t.Errorf("the one before: %+v, %v", status, err)
	}
}

// What runs fails when the guest's agent starts again, says something else than
// frames, or is gone; and then the agent works again, if there is one.
func TestVMRunResets(t *testing.T) {
	for name, disturb := range map[string]func(*fakeGuest){
		"restart": func(g *fakeGuest) { g.Mux.Hello(wire.Hello{Version: wire.Version}, false) },
		"garbage": func(g *fakeGuest) { g.conn.Write([]byte("login: this is a console, is it not?")) },
		"death":   func(g *fakeGuest) { g.conn.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			a, g := newPair(t)
			go g.serve()
			running := make(chan error, 1)
			go func() {
				_, err := a.Run(t.Context(), Command{Argv: []string{"running"}})
				running <- err
			}()
			(<-g.opened).Send(wire.KindStarted, wire.Started{})
			before := <-g.session
			disturb(g)
			if err := <-running; !errors.Is(err, wire.ErrReset) && (name != "death" || !errors.Is(err, ErrClosed)) {
				t.Errorf("what ran: %v", err)
			}
			go func() { answers(t, <-g.opened, 5) }()
			s, err := a.Run(t.Context(), Command{Argv: []string{"next"}})
			if name == "death" {
				if !errors.Is(err, ErrClosed) {
					t.Errorf("without an agent: %v", err)
				}
				return
			}
			if err != nil || s.Code != 5 {
				t.Errorf("the next one: %+v, %v", s, err)
			}
			if after := <-g.session; after == before {
				t.Error("the session has not changed")
			}
		})
	}
}

func TestVMRunResults(t *testing.T) {
	for name, tt := range map[string]struct {
		result wire.Result
		status Status
		err    string
	}{
		"code":      {wire.Result{Code: 7}, Status{Code: 7}, ""},
		"signal":    {wire.Result{Signal: 9}, Status{Signal: 9}, ""},
		"not found": {wire.Result{Code: 127, Error: "run x: not found"}, Status{}, "run x: not found"},
	} {
		t.Run(name, func(t *testing.T) {
			a, g := newPair(t)
			go g.serve()
			go func() {
				s := <-g.opened
				if tt.err == "" {
					s.Send(wire.KindStarted, wire.Started{})
				}
				s.Send(wire.KindResult, tt.result)
			}()
			status, err := a.Run(t.Context(), Command{Argv: []string{"x"}})
			if status != tt.status || err == nil != (tt.err == "") || err != nil && err.Error() != tt.err {
				t.Errorf("%+v, %v", status, err)
			}
		})
	}
}

// A source that breaks off is told as an end, which the guest refuses.
func TestVMRunPut(t *testing.T) {
	a, g := newPair(t)
	go g.serve()
	go func() {
		s := <-g.opened
		s.Send(wire.KindStarted, wire.Started{})
		text, err := io.ReadAll(s.Reader(wire.Stdin))
		if err != nil || string(text) != "files" {
			t.Errorf("%q, %v", text, err)
		}
		s.Send(wire.KindResult, wire.Result{Error: "unexpected EOF"})
	}()
	files := io.MultiReader(strings.NewReader("files"), failing{})
	if err := a.Put(t.Context(), "/to", "name", files); err == nil || err.Error() != "unexpected EOF" {
		t.Errorf("%v", err)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("broken") }
