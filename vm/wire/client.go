package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Client asks one server. It may be shared by goroutines: each request has a
// connection of its own.
type Client struct {
	Dir  string // of the socket
	Name string // of the socket in Dir
}

// ErrNoAnswer is in the chain of the error where a server is there and does not
// answer in time.
var ErrNoAnswer = errors.New("no answer")

// slack is what a client waits beyond the time that it gave the server.
const slack = 2 * time.Second

// Request is a request to make.
type Request struct {
	Verb    string
	Args    any           // nil: none
	Files   []*os.File    // to go along; they stay the caller's
	Timeout time.Duration // for the server's work; 0: without bound
}

// Do makes a request and decodes the reply into result, unless that is nil. The
// files that came with the reply are the caller's. A *Refusal in the error's
// tree is the server's, a *VersionError tells that it speaks another version;
// where it does not answer at all the error wraps ErrNoAnswer.
func (c Client) Do(ctx context.Context, r Request, result any) ([]*os.File, error) {
	s, err := c.Open(ctx, r)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	for {
		p, err := s.Receive()
		if done, ok := errors.AsType[*Done](err); ok {
			if done.Err != nil {
				return nil, done.Err
			}
			return done.Files, done.Decode(result)
		}
		if err != nil {
			return nil, err
		}
		p.Close()
	}
}

// Done is the error by which a client's Receive tells the server's reply.
type Done struct {
	Result json.RawMessage
	Files  []*os.File
	Err    error // the server's refusal; nil: it was done
}

func (d *Done) Error() string {
	if d.Err != nil {
		return d.Err.Error()
	}
	return "done"
}

func (d *Done) Unwrap() error { return d.Err }

// Decode decodes the result, unless into is nil.
func (d *Done) Decode(into any) error {
	if into == nil || len(d.Result) == 0 {
		return nil
	}
	if err := json.Unmarshal(d.Result, into); err != nil {
		return fmt.Errorf("decode reply: %w", err)
	}
	return nil
}

// ClientStream is a request that was made. Close gives it up.
type ClientStream struct {
	*Stream
	first bool
	alarm *time.Timer
}

// Open makes a request and returns where the answer will come: Receive yields
// what the server sends on its stream, if it opens one, and at last an error
// that is a *Done.
func (c Client) Open(ctx context.Context, r Request) (*ClientStream, error) {
	args, err := encodeArgs(r.Args)
	if err != nil {
		return nil, err
	}
	dialing, cancel := context.WithTimeout(ctx, dialPatience)
	defer cancel()
	conn, err := Dial(dialing, c.Dir, c.Name)
	if err != nil {
		if dialing.Err() != nil && ctx.Err() == nil {
			err = fmt.Errorf("%w within %v", ErrNoAnswer, dialPatience)
		}
		return nil, err
	}
	s := &ClientStream{Stream: newStream(ctx, newPackets(conn)), first: true}
	s.limit, s.answer = maxMessage, maxMessage
	if r.Timeout > 0 {
		limit := r.Timeout + slack
		s.alarm = time.AfterFunc(limit, func() { s.cancel(fmt.Errorf("%w within %v", ErrNoAnswer, r.Timeout)) })
	}
	q := request{Protocol: Version, Verb: r.Verb, Args: args, Timeout: r.Timeout}
	if err := s.packets.writeJSON(kindRequest, q, r.Files, nil); err != nil && !isHangup(err) {
		s.Close()
		return nil, fmt.Errorf("send request: %w", err)
	}
	go s.read()
	return s, nil
}

// dialPatience bounds the wait for a place in a server's backlog.
const dialPatience = 10 * time.Second

// isHangup tells an error of writing to a server that has said its last word
// already, and which reading will tell.
func isHangup(err error) bool {
	return errors.Is(err, net.ErrClosed) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)
}

func encodeArgs(args any) (json.RawMessage, error) {
	if args == nil {
		return nil, nil
	}
	text, err := json.Marshal(args)
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	return text, nil
}

// Receive waits for what the server sends next. When it has replied the error
// is a *Done; a connection that ends without a reply is an error that wraps
// io.ErrUnexpectedEOF.
func (s *ClientStream) Receive() (Packet, error) {
	for {
		p, err := s.receive()
		if err != nil {
			return Packet{}, wentAway(err)
		}
		if err := s.checkFirst(p); err != nil {
			p.close()
			return Packet{}, err
		}
		switch p.kind {
		case kindStarted:
			p.close()
		case kindReply:
			return Packet{}, s.done(p)
		default:
			return p.public()
		}
	}
}

// wentAway tells a server's end without a reply from other errors.
func wentAway(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
		return fmt.Errorf("the supervisor went away: %w", io.ErrUnexpectedEOF)
	}
	return err
}

// Started waits until the server has opened its stream. A server that replies
// instead gives a *Done, as by Receive.
func (s *ClientStream) Started() error {
	p, err := s.receive()
	if err == nil {
		err = s.checkFirst(p)
	}
	switch {
	case err != nil:
		return wentAway(err)
	case p.kind == kindReply:
		return s.done(p)
	}
	p.close()
	return nil
}

// checkFirst looks at the version that the server's first packet names.
func (s *ClientStream) checkFirst(p packet) error {
	if !s.first {
		return nil
	}
	s.first = false
	if p.kind != kindStarted && p.kind != kindReply {
		return fmt.Errorf("%w: the server began with %q", ErrProtocol, byte(p.kind))
	}
	version, err := protocolOf(p.data)
	if err == nil && version != Version {
		err = &VersionError{Ours: Version, Theirs: version}
	}
	return err
}

func (s *ClientStream) done(p packet) error {
	var r reply
	if err := json.Unmarshal(p.data, &r); err != nil {
		p.close()
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	d := &Done{Result: r.Result, Files: p.files}
	if r.Error != nil {
		d.Err = r.Error
	}
	return d
}

// Close ends the request: the server learns that nobody waits for it any more.
func (s *ClientStream) Close() error {
	if s.alarm != nil {
		s.alarm.Stop()
	}
	s.close()
	return nil
}
