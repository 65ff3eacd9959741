package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// ErrReset is why a stream fails when its session ends before it.
var ErrReset = errors.New("the connection with the guest's agent was reset")

// ErrClosed is why a stream fails when the connection ends: the other side is
// gone for good.
var ErrClosed = errors.New("the connection with the guest has ended")

// Handler gets what does not belong to a stream that is open. Its methods are
// called by Mux.Run, one after the other, and must not block.
type Handler interface {
	Hello(Hello)
	// Opened is a new stream with the other side's request.
	Opened(*Stream, Request)
	// Lost tells that the other side says something else than frames.
	Lost()
}

// Mux has many streams on one byte stream. Its methods may be called from
// several goroutines.
type Mux struct {
	conn    io.ReadWriter
	handler Handler

	mu      sync.Mutex
	wake    *sync.Cond // queue has grown, or closed
	queue   []byte     // encoded frames, to be written
	writing bool
	streams map[uint32]*Stream
	last    uint32 // id of the newest stream
	closed  bool
}

// NewMux makes a Mux on a connection, which stays the caller's. Run makes it
// work.
func NewMux(conn io.ReadWriter, handler Handler) *Mux {
	m := &Mux{conn: conn, handler: handler, streams: map[uint32]*Stream{}}
	m.wake = sync.NewCond(&m.mu)
	return m
}

// Run reads and writes frames until the connection ends, and returns why. All
// streams have failed then. A write that hangs has to be ended by whoever owns
// the connection.
func (m *Mux) Run() error {
	var writer sync.WaitGroup
	writer.Go(m.write)
	err := m.read()
	m.close()
	writer.Wait()
	return err
}

func (m *Mux) read() error {
	d := newDecoder(m.conn)
	for {
		f, err := d.next()
		switch {
		case errors.Is(err, errLost):
			m.handler.Lost()
		case err != nil:
			return err
		default:
			m.dispatch(f)
		}
	}
}

func (m *Mux) dispatch(f Frame) {
	switch f.Kind {
	case KindHello:
		var h Hello
		if json.Unmarshal(f.Payload, &h) == nil {
			m.handler.Hello(h)
		}
	case KindOpen:
		var r Request
		if json.Unmarshal(f.Payload, &r) == nil {
			m.handler.Opened(m.add(f.Stream), r)
		}
	default:
		m.mu.Lock()
		defer m.mu.Unlock()
		if s := m.streams[f.Stream]; s != nil {
			s.receive(f)
		}
	}
}

// Hello sends a hello, where wanted after as much padding as takes a receiver out
// of a frame that it waits for the rest of. To one that waits for none it does
// nothing.
func (m *Mux) Hello(h Hello, padding bool) error {
	payload, err := json.Marshal(h)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if padding {
		m.queue = append(m.queue, make([]byte, maxFrame)...)
	}
	m.send(KindHello, 0, payload)
	return nil
}

// Idle tells that all that was to be sent has been written.
func (m *Mux) Idle() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.queue) == 0 && !m.writing
}

// Open begins a stream with a request. Channels that have nothing to send can be
// ended with it, which costs the other side no further wake.
func (m *Mux) Open(r Request, ended ...byte) (*Stream, error) {
	payload, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	if len(payload) > maxPayload {
		return nil, fmt.Errorf("a request of %d bytes; the most is %d", len(payload), maxPayload)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrClosed
	}
	m.last++
	s := m.addLocked(m.last)
	m.send(KindOpen, s.id, payload)
	for _, channel := range ended {
		s.out[channel].ended = true
		m.send(KindEnd, s.id, []byte{channel})
	}
	return s, nil
}

func (m *Mux) add(id uint32) *Stream {
	m.mu.Lock()
	defer m.mu.Unlock()
	if old := m.streams[id]; old != nil {
		old.fail(ErrReset)
	}
	return m.addLocked(id)
}

func (m *Mux) addLocked(id uint32) *Stream {
	s := newStream(m, id)
	m.streams[id] = s
	return s
}

// Reset makes all streams fail, and forgets what was to be sent. The number of
// the next stream is not one that was used before.
func (m *Mux) Reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reset(ErrReset)
}

func (m *Mux) reset(why error) {
	for id, s := range m.streams {
		s.fail(why)
		delete(m.streams, id)
	}
	m.queue = nil
}

func (m *Mux) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	m.reset(ErrClosed)
	m.wake.Broadcast()
}

// send queues a frame. How much data is queued is bounded by the other side's
// credit, all else is short. The caller holds mu.
func (m *Mux) send(kind Kind, stream uint32, payload ...[]byte) {
	if m.closed {
		return
	}
	m.queue = appendFrame(m.queue, kind, stream, payload...)
	m.wake.Broadcast()
}

// write writes what is queued, as much as there is at once.
func (m *Mux) write() {
	var batch []byte
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		for len(m.queue) == 0 && !m.closed {
			m.wake.Wait()
		}
		if m.closed {
			return
		}
		batch, m.queue = m.queue, batch[:0]
		m.writing = true
		m.mu.Unlock()
		_, err := m.conn.Write(batch)
		m.mu.Lock()
		m.writing = false
		if err != nil {
			m.closed = true
			m.reset(ErrClosed)
			return
		}
		if cap(batch) > 8*maxFrame {
			batch = nil
		}
	}
}
