package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"
)

// Handler serves one request. What it returns is the reply. The context ends
// when the client is gone, when the request's time is over, and with the server.
type Handler func(ctx context.Context, c *Call) (result any, err error)

// Call is a request as its handler sees it.
type Call struct {
	Args  json.RawMessage
	Files []*os.File // that came along; closed when the handler returns, unless it takes them
	Peer  uint32     // the client's user id

	start func() (*Stream, error)
}

// TakeFiles makes the files the handler's, which closes them.
func (c *Call) TakeFiles() []*os.File {
	files := c.Files
	c.Files = nil
	return files
}

// Start opens the stream. It can be called once; the handler's return ends it.
func (c *Call) Start() (*Stream, error) { return c.start() }

// Decode decodes the arguments, and refuses what it does not know.
func (c *Call) Decode(into any) error {
	if len(c.Args) == 0 {
		return nil
	}
	if err := strictly(c.Args, into); err != nil {
		return Refuse(KindUsage, "read the request's arguments: %v", err)
	}
	return nil
}

// Server serves a control socket until Close.
type Server struct {
	verbs    map[string]Handler
	owner    uint32
	log      *slog.Logger
	listener *net.UnixListener
	asking   context.Context // ends with the taking of requests
	silence  context.CancelFunc
	ctx      context.Context // ends with everything
	cancel   context.CancelFunc
	serving  sync.WaitGroup
	slots    chan struct{}
}

const (
	requestPatience = 10 * time.Second // for a client to say what it wants
	replyPatience   = 5 * time.Second  // for a client to take its reply
	maxClients      = 512              // at a time; others wait in the backlog
	acceptPause     = 50 * time.Millisecond
)

// Serve serves requests by a table of verbs, each client in goroutines of its
// own. Only owner, a user id, and root are served. The listener stays the
// caller's, who closes it after the server.
func Serve(l *net.UnixListener, verbs map[string]Handler, owner uint32, log *slog.Logger) *Server {
	s := &Server{verbs: verbs, owner: owner, log: log, listener: l, slots: make(chan struct{}, maxClients)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.asking, s.silence = context.WithCancel(s.ctx)
	s.serving.Go(s.accept)
	return s
}

// Close takes no more requests, gives those that are being served some time to
// end by themselves, ends them then, and waits for it.
func (s *Server) Close(patience time.Duration) {
	s.silence()
	s.listener.SetDeadline(time.Unix(1, 0)) // ends accept, and leaves the socket its owner's
	late := time.AfterFunc(patience, s.cancel)
	s.serving.Wait()
	late.Stop()
	s.cancel()
}

func (s *Server) accept() {
	for {
		select {
		case s.slots <- struct{}{}:
		case <-s.asking.Done():
			return
		}
		conn, err := s.listener.AcceptUnix()
		switch {
		case s.asking.Err() != nil || errors.Is(err, net.ErrClosed):
			if err == nil {
				conn.Close()
			}
			return
		case err != nil:
			<-s.slots
			s.log.Warn("a client of the control socket was not accepted", "cause", err)
			select {
			case <-time.After(acceptPause): // a lack of descriptors is likely to last
			case <-s.asking.Done():
			}
			continue
		}
		s.serving.Go(func() {
			s.serve(conn)
			<-s.slots
		})
	}
}

// serve serves one connection.
func (s *Server) serve(conn *net.UnixConn) {
	defer conn.Close()
	stop := context.AfterFunc(s.asking, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	p := newPackets(conn)
	conn.SetReadDeadline(time.Now().Add(requestPatience))
	r, call, err := s.readRequest(conn, p)
	if !stop() || r == nil && err == nil {
		return
	}
	if err != nil {
		if call != nil {
			closeFiles(call.Files)
		}
		s.reply(p, nil, err)
		return
	}
	conn.SetReadDeadline(time.Time{})
	s.run(p, r, call)
}

var errEnded = Refuse(KindEnded, "it has ended")

// readRequest reads the first packets of a connection. Without a request and
// without an error there is nobody to answer to.
func (s *Server) readRequest(conn *net.UnixConn, p *packets) (*request, *Call, error) {
	uid, err := peerUID(conn)
	if err != nil {
		return nil, nil, err
	}
	first, err := p.read()
	if err != nil {
		return nil, nil, nil // gone, or too slow
	}
	call := &Call{Files: first.files, Peer: uid}
	if !mayAsk(uid, s.owner) {
		return nil, call, Refuse(KindDenied, "the virtual machine is another user's")
	}
	text, err := s.wholeRequest(p, first)
	if err != nil {
		return nil, call, Refuse(KindUsage, "%v", err)
	}
	version, err := protocolOf(text)
	if err != nil {
		return nil, call, Refuse(KindUsage, "%v", err)
	}
	if version != Version {
		return nil, call, Refuse(KindVersion, "this supervisor's control protocol is %d, yours is %d", Version, version)
	}
	var r request
	if err := strictly(text, &r); err != nil {
		return nil, call, Refuse(KindUsage, "read request: %v", err)
	}
	call.Args = r.Args
	return &r, call, nil
}

// mayAsk tells whether a user is served. Root could take what it wants.
func mayAsk(uid, owner uint32) bool { return uid == owner || uid == 0 }

func (s *Server) wholeRequest(p *packets, first packet) ([]byte, error) {
	text := first.data
	for next := first; ; {
		switch {
		case next.kind&^more != kindRequest:
			return nil, fmt.Errorf("%w: the first packet has to be a request", ErrProtocol)
		case next.kind&more == 0:
			return text, nil
		}
		var err error
		if next, err = p.read(); err != nil {
			return nil, err
		}
		next.close()
		if text = append(text, next.data...); len(text) > maxRequest {
			return nil, fmt.Errorf("%w: the request is longer than %d bytes", ErrProtocol, maxRequest)
		}
	}
}

// run carries out a request.
func (s *Server) run(p *packets, r *request, call *Call) {
	stream := newStream(context.Background(), p)
	stream.limit = maxRequest
	defer stream.close()
	s.serving.Go(stream.read)
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	defer context.AfterFunc(s.ctx, func() {
		cancel(errEnded)
		// A handler that sends to a client that takes nothing ends with the stream.
		late := time.AfterFunc(replyPatience, func() { stream.cancel(errEnded) })
		context.AfterFunc(stream.ctx, func() { late.Stop() })
	})()
	if r.Timeout > 0 {
		var done context.CancelFunc
		ctx, done = context.WithTimeoutCause(ctx, r.Timeout, Refuse(KindDeadline, "not done within %v", r.Timeout))
		defer done()
	}
	started := false
	call.start = func() (*Stream, error) {
		if started {
			return nil, errors.New("start stream: it was started before")
		}
		started = true
		return stream, p.writeJSON(kindStarted, reply{Protocol: Version}, nil, nil)
	}
	result, err := s.handle(ctx, r.Verb, call)
	closeFiles(call.Files)
	if err != nil && ctx.Err() != nil {
		if cause, ok := errors.AsType[*Refusal](context.Cause(ctx)); ok && !errors.As(err, new(*Refusal)) {
			err = cause
		}
	}
	s.reply(p, result, err)
}

func (s *Server) handle(ctx context.Context, verb string, call *Call) (any, error) {
	h, ok := s.verbs[verb]
	if !ok {
		return nil, Refuse(KindUnknown, "no such request: %.40q", verb)
	}
	return h(ctx, call)
}

// reply ends a connection. A client that does not take it in time goes without.
func (s *Server) reply(p *packets, result any, err error) {
	p.conn.SetWriteDeadline(time.Now().Add(replyPatience))
	answer := reply{Protocol: Version}
	var files []*os.File
	if withFiles, ok := result.(WithFiles); ok {
		result, files = withFiles.Result, withFiles.Files
		defer closeFiles(files)
	}
	if err == nil {
		answer.Result, err = json.Marshal(result)
	}
	if err != nil {
		answer.Error, answer.Result = newRefusal(err), nil
	}
	if err := p.writeJSON(kindReply, answer, files, nil); err != nil && !errors.Is(err, io.EOF) {
		s.log.Debug("a client did not take its reply", "cause", err)
	}
}

// WithFiles is a handler's result with open files for the client, which are
// closed here once they are sent.
type WithFiles struct {
	Result any
	Files  []*os.File
}
