package wire

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// window is how many bytes of a channel may be on their way, or wait for who
// reads them.
const window = 256 << 10

// maxMessages is how many messages of a stream may wait for who reads them.
const maxMessages = 1 << 10

// ErrCancelled is why a stream fails that the host does not wait for any more.
var ErrCancelled = errors.New("cancelled")

var errStopped = fmt.Errorf("the receiver wants no more: %w", io.ErrClosedPipe)

// Stream is one request with its channels. A slow reader of one channel holds up
// nobody but its writer. Methods may be called from several goroutines, those of
// one channel's reader or writer from one at a time.
type Stream struct {
	mux *Mux
	id  uint32

	// All are guarded by mux.mu.
	changed  *sync.Cond
	err      error // why the stream failed; nil: it has not
	messages []Frame
	arrived  chan struct{} // has an item where messages may have grown, or err was set
	in       [channels]inbox
	out      [channels]outbox
}

// inbox is the receiving end of a channel.
type inbox struct {
	data    []byte
	used    int  // bytes that were read and not yet credited
	ended   bool // by the sender
	stopped bool // by us
}

// outbox is the sending end of a channel.
type outbox struct {
	credit  int
	ended   bool // by us
	stopped bool // by the receiver
}

func newStream(m *Mux, id uint32) *Stream {
	s := &Stream{mux: m, id: id, changed: sync.NewCond(&m.mu), arrived: make(chan struct{}, 1)}
	for c := range s.out {
		s.out[c].credit = window
	}
	return s
}

// fail ends the stream for all who wait for it. The caller holds mux.mu.
func (s *Stream) fail(err error) {
	if s.err == nil {
		s.err = err
	}
	s.changed.Broadcast()
	s.notify()
}

func (s *Stream) notify() {
	select {
	case s.arrived <- struct{}{}:
	default:
	}
}

// receive takes a frame. What breaks the protocol makes the stream fail. The
// caller holds mux.mu.
func (s *Stream) receive(f Frame) {
	switch f.Kind {
	case KindCancel:
		s.fail(ErrCancelled)
		return
	case KindStarted, KindControl, KindResult:
		if len(s.messages) == maxMessages {
			s.fail(errors.New("too many messages"))
			return
		}
		s.messages = append(s.messages, Frame{Kind: f.Kind, Payload: append([]byte(nil), f.Payload...)})
		s.notify()
		if f.Kind == KindResult {
			s.endAll()
		}
		return
	}
	if len(f.Payload) == 0 || f.Payload[0] >= channels {
		s.fail(errors.New("a frame of no channel"))
		return
	}
	in, out, rest := &s.in[f.Payload[0]], &s.out[f.Payload[0]], f.Payload[1:]
	switch f.Kind {
	case KindData:
		if len(in.data)+in.used+len(rest) > window || in.ended {
			s.fail(errors.New("more data than was asked for"))
			return
		}
		if in.stopped {
			return
		}
		in.data = append(in.data, rest...)
	case KindEnd:
		in.ended = true
	case KindStop:
		out.stopped = true
	case KindCredit:
		if len(rest) != 4 || out.credit+int(binary.LittleEndian.Uint32(rest)) > window {
			s.fail(errors.New("a credit that is none"))
			return
		}
		out.credit += int(binary.LittleEndian.Uint32(rest))
	}
	s.changed.Broadcast()
}

// endAll is what a stream's last message means for its channels. The caller holds
// mux.mu.
func (s *Stream) endAll() {
	for c := range s.in {
		s.in[c].ended = true
		s.out[c].stopped = true
	}
	s.changed.Broadcast()
}

// Message waits for the next message and returns its kind. It is decoded into
// the value that into has for this kind; kinds that it lacks are left out. All
// that came before a failure of the stream is returned before it.
func (s *Stream) Message(ctx context.Context, into map[Kind]any) (Kind, error) {
	for {
		f, err := s.takeMessage()
		switch value := into[f.Kind]; {
		case err != nil:
			return 0, err
		case f.Kind == 0:
			select {
			case <-s.arrived:
			case <-ctx.Done():
				return 0, context.Cause(ctx)
			}
		case value != nil:
			if err := json.Unmarshal(f.Payload, value); err != nil {
				return 0, fmt.Errorf("parse message: %w", err)
			}
			return f.Kind, nil
		}
	}
}

// takeMessage returns the oldest message, or a zero frame where there is none.
func (s *Stream) takeMessage() (Frame, error) {
	s.mux.mu.Lock()
	defer s.mux.mu.Unlock()
	if len(s.messages) == 0 {
		return Frame{}, s.err
	}
	f := s.messages[0]
	s.messages = s.messages[1:]
	return f, nil
}

// Send sends a message.
func (s *Stream) Send(kind Kind, message any) error {
	payload, err := json.Marshal(message)
	if err != nil {
		return err
	}
	if len(payload) > maxPayload {
		return fmt.Errorf("a message of %d bytes; the most is %d", len(payload), maxPayload)
	}
	s.mux.mu.Lock()
	defer s.mux.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	s.mux.send(kind, s.id, payload)
	return nil
}

// Cancel tells the other side that nobody waits for the result, whose readers
// and writers fail, and closes the stream.
func (s *Stream) Cancel() error {
	s.mux.mu.Lock()
	if s.err == nil {
		s.mux.send(KindCancel, s.id)
	}
	s.mux.mu.Unlock()
	return s.Close()
}

// Close forgets the stream; what comes for it from now on is ignored. Whoever
// still reads or writes its channels gets an error. The other side learns of it
// from a last message, the result, only.
func (s *Stream) Close() error {
	s.mux.mu.Lock()
	defer s.mux.mu.Unlock()
	if s.mux.streams[s.id] == s {
		delete(s.mux.streams, s.id)
	}
	s.fail(io.ErrClosedPipe)
	return nil
}

// Reader is the receiving end of a channel. Its Close tells the sender that no
// more is wanted.
func (s *Stream) Reader(channel byte) io.ReadCloser { return &reader{s, channel} }

// Writer is the sending end of a channel. Its Close tells the receiver that
// there is no more.
func (s *Stream) Writer(channel byte) io.WriteCloser { return &writer{s, channel} }

type reader struct {
	*Stream
	channel byte
}

// Read waits for data and returns what there is; io.EOF when all was read.
func (r *reader) Read(p []byte) (int, error) {
	r.mux.mu.Lock()
	defer r.mux.mu.Unlock()
	in := &r.in[r.channel]
	for len(in.data) == 0 && !in.ended && !in.stopped && r.err == nil {
		r.changed.Wait()
	}
	switch {
	case len(in.data) > 0:
	case in.ended:
		return 0, io.EOF
	case in.stopped:
		return 0, io.ErrClosedPipe
	default:
		return 0, r.err
	}
	n := copy(p, in.data)
	if in.data = in.data[n:]; len(in.data) == 0 {
		in.data = nil
	}
	if in.used += n; in.used >= window/2 && !in.ended {
		credit := binary.LittleEndian.AppendUint32([]byte{r.channel}, uint32(in.used))
		r.mux.send(KindCredit, r.id, credit)
		in.used = 0
	}
	return n, nil
}

func (r *reader) Close() error {
	r.mux.mu.Lock()
	defer r.mux.mu.Unlock()
	in := &r.in[r.channel]
	if in.stopped || in.ended || r.err != nil {
		return nil
	}
	in.stopped, in.data, in.used = true, nil, 0
	r.mux.send(KindStop, r.id, []byte{r.channel})
	r.changed.Broadcast()
	return nil
}

type writer struct {
	*Stream
	channel byte
}

// Write waits for the receiver's credit where there is none.
func (w *writer) Write(p []byte) (written int, err error) {
	w.mux.mu.Lock()
	defer w.mux.mu.Unlock()
	out := &w.out[w.channel]
	for len(p) > 0 {
		for out.credit == 0 && !out.stopped && !out.ended && w.err == nil {
			w.changed.Wait()
		}
		switch {
		case w.err != nil:
			return written, w.err
		case out.stopped:
			return written, errStopped
		case out.ended:
			return written, io.ErrClosedPipe
		}
		n := min(len(p), out.credit, maxData)
		w.mux.send(KindData, w.id, []byte{w.channel}, p[:n])
		out.credit -= n
		written += n
		p = p[n:]
	}
	return written, nil
}

func (w *writer) Close() error {
	w.mux.mu.Lock()
	defer w.mux.mu.Unlock()
	out := &w.out[w.channel]
	if !out.ended && w.err == nil {
		out.ended = true
		w.mux.send(KindEnd, w.id, []byte{w.channel})
		w.changed.Broadcast()
	}
	return nil
}
