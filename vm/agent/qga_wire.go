package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// QGAPort is the name of the virtio-serial port that qemu-guest-agent serves.
const QGAPort = "org.qemu.guest_agent.0"

const qgaSilent = "is qemu-guest-agent running in the guest?"

// maxReply is how long a reply may be, in bytes: the output of a command, of
// which the agent keeps 16 MiB for each of two streams, as base64.
const maxReply = 64 << 20

// QGAError is what qemu-guest-agent answers to a command that it does not carry
// out.
type QGAError struct {
	Command string
	Class   string // such as CommandNotFound
	Desc    string
}

func (e *QGAError) Error() string {
	if e.Class == classNotFound {
		return fmt.Sprintf("qemu-guest-agent has no command %s, or does not allow it", e.Command)
	}
	return fmt.Sprintf("qemu-guest-agent: %s: %s", e.Command, e.Desc)
}

const classNotFound = "CommandNotFound"

// channel is a connection with qemu-guest-agent. It knows one command at a time,
// and replies without saying to what: after a reply that did not come in time
// both sides have to find each other again (QEMU Guest Agent Protocol Reference,
// guest-sync-delimited).
type channel struct {
	conn   *pulse
	r      *bufio.Reader
	turn   chan struct{} // holds an item while nobody is at it
	synced bool          // of whose turn it is

	mu     sync.Mutex
	silent chan struct{} // closed and replaced when a command was not answered
}

// pulse tells whenever bytes have gone through a connection.
type pulse struct {
	net.Conn
	beat func() // of whose turn it is
}

func (p *pulse) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	if n > 0 {
		p.beat()
	}
	return n, err
}

func (p *pulse) Write(b []byte) (written int, err error) {
	const piece = 32 << 10 // each one is a sign of life
	for len(b) > 0 && err == nil {
		var n int
		n, err = p.Conn.Write(b[:min(len(b), piece)])
		written += n
		b = b[n:]
		p.beat()
	}
	return written, err
}

func newChannel(conn net.Conn) *channel {
	c := &channel{conn: &pulse{conn, func() {}}, turn: make(chan struct{}, 1), silent: make(chan struct{})}
	c.r = bufio.NewReaderSize(c.conn, 64<<10)
	c.turn <- struct{}{}
	return c
}

// call sends a command and decodes what it returns into result, if that is not
// nil. It is given up with a *NoAnswerError when for patience no byte has moved:
// what is long may take its time, and so may the commands before it.
func (c *channel) call(ctx context.Context, patience time.Duration, command string, args, result any) error {
	c.mu.Lock()
	silent := c.silent
	c.mu.Unlock()
	select {
	case <-c.turn:
		defer func() { c.turn <- struct{}{} }()
	case <-silent:
		// Whoever waited meanwhile need not find out as well.
		return &NoAnswerError{patience, qgaSilent}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	err := c.bound(ctx, patience, func() error { return c.converse(command, args, result) })
	if _, none := errors.AsType[*NoAnswerError](err); none {
		c.mu.Lock()
		defer c.mu.Unlock()
		close(c.silent)
		c.silent = make(chan struct{})
	}
	return err
}

// converse is a command and its reply.
func (c *channel) converse(command string, args, result any) error {
	if err := c.sync(); err != nil {
		return err
	}
	c.synced = false // until there is a reply
	reply, err := c.exchange(command, args)
	if err != nil {
		return err
	}
	c.synced = true
	if reply.Error != nil {
		return &QGAError{Command: command, Class: reply.Error.Class, Desc: reply.Error.Desc}
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(reply.Return, result); err != nil {
		return fmt.Errorf("parse reply to %s: %w", command, err)
	}
	return nil
}

// bound makes f's reads and writes end with the context, and when nothing has
// moved for patience.
func (c *channel) bound(ctx context.Context, patience time.Duration, f func() error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := c.conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.AfterFunc(patience, func() { cancel(&NoAnswerError{patience, qgaSilent}) })
	defer timer.Stop()
	c.conn.beat = func() { timer.Reset(patience) }
	expired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		c.conn.SetDeadline(time.Unix(1, 0))
		close(expired)
	})
	err := f()
	if !stop() {
		<-expired // else it would fall into the next call
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return ErrClosed
	}
	return err
}

// sentinel is a byte that JSON never has. Where it is received what came before
// is dropped.
const sentinel = 0xff

// sync finds the place where the next reply begins. What waits to be read
// belongs to commands that nobody waits for any more.
func (c *channel) sync() error {
	if c.synced {
		return nil
	}
	id := rand.Int64N(1 << 52)
	request, err := encode("guest-sync-delimited", map[string]int64{"id": id})
	if err != nil {
		return err
	}
	if _, err := c.conn.Write(append([]byte{sentinel}, request...)); err != nil {
		return err
	}
	for {
		if err := c.skipPast(sentinel); err != nil {
			return err
		}
		line, err := c.line()
		if err != nil {
			if errors.Is(err, errTooLong) {
				continue
			}
			return err
		}
		// Others are replies to earlier attempts.
		var reply struct{ Return int64 }
		if json.Unmarshal(line, &reply) == nil && reply.Return == id {
			c.synced = true
			return nil
		}
	}
}

func (c *channel) skipPast(b byte) error {
	for {
		_, err := c.r.ReadSlice(b)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}

var errTooLong = fmt.Errorf("qemu-guest-agent: a reply of more than %d bytes", maxReply)

// line reads a line. In one that is a sentinel's, what comes behind counts.
func (c *channel) line() ([]byte, error) {
	var line []byte
	for {
		part, err := c.r.ReadSlice('\n')
		if len(line)+len(part) > maxReply {
			return nil, errTooLong
		}
		line = append(line, part...)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line[bytes.LastIndexByte(line, sentinel)+1:], err
		}
	}
}

type reply struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

// exchange sends a command and reads the reply.
func (c *channel) exchange(command string, args any) (reply, error) {
	var r reply
	request, err := encode(command, args)
	if err != nil {
		return r, err
	}
	if _, err := c.conn.Write(request); err != nil {
		return r, err
	}
	line, err := c.line()
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return r, fmt.Errorf("parse reply to %s: %w", command, err)
	}
	if r.Error == nil && r.Return == nil {
		return r, fmt.Errorf("parse reply to %s: neither a result nor an error", command)
	}
	return r, nil
}

func encode(command string, args any) ([]byte, error) {
	request, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, args})
	return append(request, '\n'), err
}
