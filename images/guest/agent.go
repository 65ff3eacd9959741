package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/vmrun/vmrun/images/guest/tree"
	"github.com/vmrun/vmrun/images/guest/wire"
)

// agent does what the host asks for: it runs commands and moves files. There is
// one for each time that its port is opened.
type agent struct {
	children *children
	console  string // path of the terminal that is the host's console; "": there is none
	env      []string
	mux      *wire.Mux
	version  string
	session  string // "": none has begun
	accepted bool   // the session's host speaks our version
}

// ErrNoPort says that a machine has no port for the agent.
var ErrNoPort = errors.New("find the agent's port: this machine has no virtio-serial port " + wire.PortName)

// serveAgent serves the agent's port. A machine without one is fine.
func serveAgent(c *children) {
	if err := servePort(c); err != nil && !errors.Is(err, ErrNoPort) {
		say("agent: %v", err)
	}
}

// ServeAgent serves the agent's port until the host is gone, in a guest whose
// process 1 is another program. It takes over the children of this process.
func ServeAgent() error {
	c := newChildren()
	go c.reap()
	return servePort(c)
}

// ServeAgentOn is ServeAgent with a connection in the place of the port, and a
// terminal in that of the console; "": none.
func ServeAgentOn(conn io.ReadWriter, console string) error {
	c := newChildren()
	go c.reap()
	return newAgent(c, conn, console).run()
}

func servePort(c *children) error {
	device, err := findPort(wire.PortName, agentPatience)
	if err != nil {
		return err
	}
	if device == "" {
		return ErrNoPort
	}
	port, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open the agent's port: %w", err)
	}
	defer port.Close()
	return newAgent(c, port, serialConsole()).run()
}

func newAgent(c *children, port io.ReadWriter, console string) *agent {
	a := &agent{children: c, console: console, env: os.Environ(), version: "vmrun"}
	a.mux = wire.NewMux(port, a)
	return a
}

// run says that the agent is there, and serves until the connection ends.
func (a *agent) run() error {
	if err := a.hello(); err != nil {
		return err
	}
	return a.mux.Run()
}

func (a *agent) hello() error {
	return a.mux.Hello(wire.Hello{Version: wire.Version, Session: a.session, Agent: a.version}, false)
}

// Hello implements wire.Handler: another session ends what the last one began.
func (a *agent) Hello(h wire.Hello) {
	if h.Session == "" {
		return
	}
	if h.Session != a.session {
		a.mux.Reset()
	}
	a.session, a.accepted = h.Session, h.Version == wire.Version
	if err := a.hello(); err != nil {
		say("agent: %v", err)
	}
}

// Lost implements wire.Handler. The host begins another session.
func (a *agent) Lost() {
	a.mux.Reset()
	a.session, a.accepted = "", false
	if err := a.hello(); err != nil {
		say("agent: %v", err)
	}
}

// Opened implements wire.Handler.
func (a *agent) Opened(s *wire.Stream, r wire.Request) {
	if !a.accepted {
		s.Close()
		return
	}
	go func() {
		defer powerOffOnPanic()
		defer s.Close()
		if err := s.Send(wire.KindResult, a.answer(s, r)); err != nil {
			return // the session is over
		}
	}()
}

// answer does what a request asks for.
func (a *agent) answer(s *wire.Stream, r wire.Request) wire.Result {
	var err error
	switch {
	case r.Exec != nil:
		return a.exec(s, *r.Exec)
	case r.Put != nil:
		err = a.put(s, *r.Put)
	case r.Get != nil:
		err = a.get(s, *r.Get)
	case r.Console != nil:
		err = resizeConsole(a.console, *r.Console)
	default:
		err = errors.New("an unknown request")
	}
	if err != nil {
		return wire.Result{Error: err.Error()}
	}
	return wire.Result{}
}

func (a *agent) put(s *wire.Stream, p wire.Put) error {
	if err := s.Send(wire.KindStarted, wire.Started{}); err != nil {
		return err
	}
	in := s.Reader(wire.Stdin)
	defer in.Close()
	// Who stops sending without an end has failed, and what there is of the
	// files so far goes.
	return tree.Unpack(in, p.Path, p.Name)
}

func (a *agent) get(s *wire.Stream, g wire.Get) error {
	if err := s.Send(wire.KindStarted, wire.Started{}); err != nil {
		return err
	}
	size, err := tree.Size(g.Path)
	if err != nil {
		return err
	}
	if err := s.Send(wire.KindStarted, wire.Started{Size: size}); err != nil {
		return err
	}
	out := s.Writer(wire.Stdout)
	if err := tree.Pack(out, g.Path); err != nil {
		return err
	}
	return out.Close()
}

// hangUpGrace is how long a command may go on after nobody waits for it.
const hangUpGrace = 5 * time.Second

// exec runs a command, and says how it ended.
func (a *agent) exec(s *wire.Stream, e wire.Exec) wire.Result {
	p, err := a.start(e)
	if err != nil {
		return wire.Result{Code: notStarted(err), Error: fmt.Sprintf("run %v", err)}
	}
	defer p.close()
	if err := s.Send(wire.KindStarted, wire.Started{PID: p.pid}); err != nil {
		a.hangUp(p)
		return wire.Result{}
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go a.obey(ctx, s, p)
	return p.attend(s)
}

// obey passes on what the host says about a command, and hangs it up when the
// host is gone or no longer waits.
func (a *agent) obey(ctx context.Context, s *wire.Stream, p *process) {
	defer powerOffOnPanic()
	for {
		var c wire.Control
		_, err := s.Message(ctx, map[wire.Kind]any{wire.KindControl: &c})
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			a.hangUp(p)
			return
		case c.Signal != 0:
			p.signal(c.Signal)
		case c.Resize != nil:
			p.resize(*c.Resize)
		}
	}
}
