// Package qmp talks to QEMU over the QEMU Machine Protocol: commands, events,
// and files handed over by descriptor.
//
// A Client owns one connection to one QEMU and may be used by any number of
// goroutines at once. Each command is a round trip with a context; replies are
// matched by id, so commands overlap, events come in between, and the late
// reply to a command that was given up harms nobody. One goroutine reads the
// connection and never waits for anyone; there is one more for each
// subscriber. Close ends them all.
//
// The protocol is QEMU's docs/interop/qmp-spec.rst, the commands and events are
// its QMP reference manual. Out-of-band execution is not negotiated, therefore
// QEMU works off the commands in the order in which they were written.
package qmp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// DefaultTimeout is how long a command, or the greeting, may take where its
// context has no deadline. QEMU answers most commands within milliseconds and
// does the long ones as jobs; the rest is for an overloaded host.
const DefaultTimeout = 30 * time.Second

// Client is a connection to one QEMU. Make it with NewClient, end it with
// Close.
type Client struct {
	conn      *net.UnixConn
	closeConn func() error
	timeout   time.Duration
	version   Version

	greetings  chan greeting // gets exactly one
	wire       chan struct{} // holds a token while somebody writes
	done       chan struct{}
	goroutines sync.WaitGroup

	mu            sync.Mutex
	err           error // why the connection ended
	lastID        uint64
	pending       map[uint64]chan message
	subscriptions map[*subscription]struct{}
}

// Version is QEMU's own account of its version.
type Version struct {
	Major, Minor, Micro int
	// Package is the distributor's version, often empty.
	Package string
}

// String is "7.2.0", or "7.2.0 (Debian 1:7.2+dfsg-7)" with a package version.
func (v Version) String() string {
	s := fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro)
	if v.Package != "" {
		s += " (" + v.Package + ")"
	}
	return s
}

// NewClient waits for QEMU's greeting and negotiates capabilities; both
// together take DefaultTimeout at most where ctx has no deadline. It owns conn
// from then on and closes it also when it fails. A QEMU that ended before its
// greeting gives an error that wraps ErrClosed.
//
// QEMU serves one client per monitor: a second one connects and waits forever.
func NewClient(ctx context.Context, conn *net.UnixConn) (*Client, error) {
	c := newClient(conn)
	c.goroutines.Go(func() { c.fail(c.receive(newLineReader(conn, maxLine))) })
	ctx, cancel := c.bound(ctx)
	defer cancel()
	if err := c.negotiate(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("negotiate with QEMU: %w", err), c.Close())
	}
	return c, nil
}

func newClient(conn *net.UnixConn) *Client {
	return &Client{
		conn:          conn,
		closeConn:     sync.OnceValue(conn.Close),
		timeout:       DefaultTimeout,
		greetings:     make(chan greeting, 1),
		wire:          make(chan struct{}, 1),
		done:          make(chan struct{}),
		pending:       make(map[uint64]chan message),
		subscriptions: make(map[*subscription]struct{}),
	}
}

func (c *Client) negotiate(ctx context.Context) error {
	select {
	case g := <-c.greetings:
		v := g.Version
		c.version = Version{v.QEMU.Major, v.QEMU.Minor, v.QEMU.Micro, v.Package}
	case <-c.done:
		return c.Err()
	case <-ctx.Done():
		return fmt.Errorf("no greeting: %w", ctx.Err())
	}
	return c.Run(ctx, "qmp_capabilities", nil, nil)
}

// Version tells which QEMU this is.
func (c *Client) Version() Version { return c.version }

// receive reads until the connection ends and tells why it did.
func (c *Client) receive(lines *lineReader) error {
	for greeted := false; ; greeted = true {
		line, err := lines.next()
		if err != nil {
			return err
		}
		m, err := parse(line)
		switch {
		case err != nil:
			return err
		case greeted == (m.Greeting != nil):
			return fmt.Errorf("parse line %.80q: not one greeting, at the start", line)
		case m.Greeting != nil:
			c.greetings <- *m.Greeting
		case m.isReply():
			c.deliver(m)
		default:
			c.publish(m.event())
		}
	}
}

// deliver hands a reply to the command that waits for it; a reply to none of
// ours is ignored. A refusal without id means that QEMU could not parse the
// command, for instance for a NUL in a string. As it answers in order, that
// was the oldest one unanswered.
func (c *Client) deliver(m message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	id := m.id()
	if m.Error != nil && !m.hasID() {
		id = c.oldest()
	}
	if reply, ok := c.pending[id]; ok {
		delete(c.pending, id)
		reply <- m
	}
}

func (c *Client) oldest() uint64 {
	var oldest uint64
	for id := range c.pending {
		if oldest == 0 || id < oldest {
			oldest = id
		}
	}
	return oldest
}

// fail ends the connection; the first cause is the one that counts.
func (c *Client) fail(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = fmt.Errorf("%w: %w", ErrClosed, cause)
	c.pending = nil
	for s := range c.subscriptions {
		s.end()
	}
	close(c.done)
	c.closeConn()
}

// Done is closed when the connection has ended, for whatever reason.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err tells why the connection ended; it wraps ErrClosed. It is nil as long as
// Done is open.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection and all subscriptions, and returns when the
// client's goroutines are gone. QEMU itself goes on. It may be called any
// number of times, from any goroutine.
func (c *Client) Close() error {
	c.fail(net.ErrClosed)
	c.mu.Lock()
	for s := range c.subscriptions {
		s.cancel()
	}
	c.mu.Unlock()
	c.goroutines.Wait()
	return c.closeConn()
}
