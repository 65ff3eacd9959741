package wire

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
)

// Channel tells the bytes of a stream apart.
type Channel byte

const (
	Message Channel = 0 // a JSON message rather than bytes
	Stdin   Channel = 1
	Stdout  Channel = 2
	Stderr  Channel = 3
)

// Packet is what a stream yields: a message, bytes of a channel, or its end.
type Packet struct {
	Channel Channel
	Data    []byte     // the message's JSON, or bytes; empty at the channel's end
	Files   []*os.File // with a message; the receiver's
	End     bool       // the other side sends no more on this channel
}

// Decode decodes a message.
func (p Packet) Decode(into any) error {
	if p.Channel != Message {
		return fmt.Errorf("%w: bytes where a message should be", ErrProtocol)
	}
	if err := json.Unmarshal(p.Data, into); err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return nil
}

// Close closes the files that came with a packet.
func (p Packet) Close() { closeFiles(p.Files) }

// Stream is one side of an open stream. Receive is for one goroutine at a time,
// all else for any number. A Receive or a Send that waits ends with the stream,
// which on the server's side is when the handler returns or the client is gone.
//
// A goroutine reads the connection and never waits for Receive: not more than a
// window of bytes may be under way, and a sender whose window is used up waits
// for the other side's Receive. So the other side's death is noticed whatever
// else stands still.
type Stream struct {
	packets *packets
	limit   int // of a message's bytes
	answer  int // of all bytes of the reply; 0: this is the server's side, which gets none
	ctx     context.Context
	cancel  context.CancelCauseFunc

	mu       sync.Mutex
	changed  *sync.Cond
	queue    []packet
	queued   int   // bytes of the window in queue
	answered int   // bytes of the reply so far
	room     int   // bytes that we may send
	taken    int   // bytes taken out of queue that the other side does not know of
	err      error // why there will be no more
}

// newStream takes over a connection. The context of the stream ends with ctx,
// with the connection, and with close.
func newStream(ctx context.Context, p *packets) *Stream {
	s := &Stream{packets: p, room: window}
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	s.changed = sync.NewCond(&s.mu)
	context.AfterFunc(s.ctx, func() {
		s.fail(context.Cause(s.ctx))
		p.conn.Close()
	})
	return s
}

// read fills the queue until the connection ends.
func (s *Stream) read() {
	for {
		p, err := s.packets.read()
		if err == nil {
			err = s.enqueue(p)
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				err = io.EOF
			}
			s.fail(err)
			s.cancel(err)
			return
		}
	}
}

func (s *Stream) enqueue(p packet) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch p.kind {
	case kindTaken:
		p.close()
		if len(p.data) != 4 {
			return fmt.Errorf("%w: a count of %d bytes", ErrProtocol, len(p.data))
		}
		s.room = min(window, s.room+int(binary.BigEndian.Uint32(p.data)))
		s.changed.Broadcast()
		return nil
	case kindMessage, kindMessage | more, kindData, kindEnd:
		s.queued += cost(len(p.data))
	case kindStarted, kindReply, kindReply | more:
		s.answered += len(p.data)
	}
	switch {
	case s.queued > window:
		p.close()
		return fmt.Errorf("%w: more than %d bytes at once", ErrProtocol, window)
	case s.answered > s.answer || !p.counts() && s.answer == 0:
		p.close()
		return fmt.Errorf("%w: a packet %q out of place", ErrProtocol, byte(p.kind))
	}
	s.queue = append(s.queue, p)
	s.changed.Broadcast()
	return nil
}

// counts tells whether a packet is of those that the window is for.
func (p packet) counts() bool {
	switch p.kind &^ more {
	case kindMessage, kindData, kindEnd:
		return true
	}
	return false
}

// cost is what a packet takes of the window: an empty one is memory too.
func cost(n int) int { return n + 64 }

// fail ends the stream; the first cause is the one that counts. What was
// received before can still be read.
func (s *Stream) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
	s.changed.Broadcast()
}

// close ends the stream and drops what nobody has read.
func (s *Stream) close() {
	s.cancel(net.ErrClosed)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.queue {
		p.close()
	}
	s.queue = nil
}

// next takes the next packet out of the queue, and says so to the other side
// when it has been enough.
func (s *Stream) next() (packet, error) {
	s.mu.Lock()
	for len(s.queue) == 0 && s.err == nil {
		s.changed.Wait()
	}
	if len(s.queue) == 0 {
		defer s.mu.Unlock()
		return packet{}, s.err
	}
	p := s.queue[0]
	s.queue[0] = packet{}
	s.queue = s.queue[1:]
	tell := 0
	if p.counts() {
		s.queued -= cost(len(p.data))
		s.taken += cost(len(p.data))
	}
	if s.taken > window/4 {
		tell, s.taken = s.taken, 0
	}
	s.mu.Unlock()
	if tell > 0 {
		// If the other side is gone, reading says so.
		s.packets.write(kindTaken, binary.BigEndian.AppendUint32(nil, uint32(tell)))
	}
	return p, nil
}

// message takes a whole message whose first part is there.
func (s *Stream) message(first packet) (packet, error) {
	whole := first
	for p := first; p.kind&more != 0; {
		var err error
		if p, err = s.next(); err != nil {
			whole.close()
			return packet{}, err
		}
		p.close()
		if p.kind&^more != whole.kind&^more || len(whole.data)+len(p.data) > s.limit {
			whole.close()
			return packet{}, fmt.Errorf("%w: a message is broken off or too long", ErrProtocol)
		}
		whole.data = append(whole.data, p.data...)
	}
	whole.kind &^= more
	return whole, nil
}

// receive returns the next packet that is not the protocol's own.
func (s *Stream) receive() (packet, error) {
	p, err := s.next()
	if err != nil || p.kind&more == 0 {
		return p, err
	}
	return s.message(p)
}

// Receive waits for what the other side sends next. The error is io.EOF when
// the other side is gone, or whatever else ended the stream.
func (s *Stream) Receive() (Packet, error) {
	p, err := s.receive()
	if err != nil {
		return Packet{}, err
	}
	got, err := p.public()
	if err != nil {
		p.close()
	}
	return got, err
}

// public is a packet as the users of streams see it.
func (p packet) public() (Packet, error) {
	switch {
	case p.kind == kindMessage:
		return Packet{Data: p.data, Files: p.files}, nil
	case p.kind == kindData && len(p.data) > 0 && p.data[0] != byte(Message):
		p.close()
		return Packet{Channel: Channel(p.data[0]), Data: p.data[1:]}, nil
	case p.kind == kindEnd && len(p.data) == 1:
		p.close()
		return Packet{Channel: Channel(p.data[0]), End: true}, nil
	}
	return Packet{}, fmt.Errorf("%w: a packet %q out of place", ErrProtocol, byte(p.kind))
}

// reserve waits until so many bytes may be sent.
func (s *Stream) reserve(n int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.room < cost(n) && s.err == nil {
		s.changed.Wait()
	}
	if s.err != nil {
		return s.err
	}
	s.room -= cost(n)
	return nil
}

// Send sends a message, with files that stay the caller's. It waits while the
// other side does not take what was sent before.
func (s *Stream) Send(message any, files ...*os.File) error {
	return s.packets.writeJSON(kindMessage, message, files, s.reserve)
}

// Writer sends bytes on a channel. Its Close tells the other side that there
// are no more; it is the channel's end, not the stream's.
func (s *Stream) Writer(c Channel) io.WriteCloser { return channelWriter{s, c} }

type channelWriter struct {
	stream  *Stream
	channel Channel
}

func (w channelWriter) Write(p []byte) (written int, err error) {
	for len(p) > 0 {
		n := min(len(p), maxPayload-1)
		if err := w.stream.reserve(n + 1); err != nil {
			return written, err
		}
		if err := w.stream.packets.write(kindData, append([]byte{byte(w.channel)}, p[:n]...)); err != nil {
			return written, err
		}
		written += n
		p = p[n:]
	}
	return written, nil
}

func (w channelWriter) Close() error {
	if err := w.stream.reserve(1); err != nil {
		return err
	}
	return w.stream.packets.write(kindEnd, []byte{byte(w.channel)})
}

// Context ends with the stream: when the other side is gone, too.
func (s *Stream) Context() context.Context { return s.ctx }
