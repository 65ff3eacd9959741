package qmp

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Run executes a command and waits for its reply, for DefaultTimeout where ctx
// has no deadline. Args becomes the arguments, a JSON object; the reply is
// decoded into result as by json.Unmarshal. Both may be nil.
//
// A refusal by QEMU is a *Error. If ctx ends first, the error wraps ctx.Err();
// QEMU may then still execute the command. If the connection ends first, the
// error wraps ErrClosed.
func (c *Client) Run(ctx context.Context, command string, args, result any) error {
	return c.run(ctx, nil, command, args, result)
}

// RunWithFile is Run with an open file for QEMU, as getfd and add-fd take one.
// QEMU gets a duplicate; f stays the caller's, also its closing.
//
// Other commands wait until this one is answered: QEMU keeps one received file
// at a time, and a second one in the meantime would take its place.
func (c *Client) RunWithFile(ctx context.Context, command string, args, result any, f *os.File) error {
	if f == nil {
		return fmt.Errorf("run %s: no file: %w", command, os.ErrInvalid)
	}
	return c.run(ctx, f, command, args, result)
}

func (c *Client) run(ctx context.Context, f *os.File, command string, args, result any) error {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	req := request{Execute: command}
	if args != nil {
		var err error
		if req.Arguments, err = json.Marshal(args); err != nil {
			return fmt.Errorf("run %s: encode arguments: %w", command, err)
		}
	}
	reply, err := c.exchange(ctx, req, f)
	if err != nil {
		return fmt.Errorf("run %s: %w", command, err)
	}
	if e := reply.Error; e != nil {
		return &Error{Command: command, Class: e.Class, Desc: e.Desc}
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(reply.Return, result); err != nil {
		return fmt.Errorf("run %s: decode reply: %w", command, err)
	}
	return nil
}

// bound gives ctx a deadline if it has none.
func (c *Client) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, c.timeout)
}

// exchange sends one command, alone on the wire, and waits for its reply.
func (c *Client) exchange(ctx context.Context, req request, f *os.File) (message, error) {
	if err := c.acquire(ctx); err != nil {
		return message{}, err
	}
	reply, err := c.send(ctx, req, f)
	if f == nil || err != nil {
		c.release()
	} else {
		defer c.release()
	}
	if err != nil {
		return message{}, err
	}
	return c.await(ctx, reply)
}

func (c *Client) acquire(ctx context.Context) error {
	if ctx.Err() == nil {
		select {
		case c.wire <- struct{}{}:
			return nil
		case <-c.done:
			return c.Err()
		case <-ctx.Done():
		}
	}
	return fmt.Errorf("not sent: %w", ctx.Err())
}

func (c *Client) release() { <-c.wire }

// await prefers the reply to whatever else is ready: QEMU answers quit and is
// gone.
func (c *Client) await(ctx context.Context, reply <-chan message) (message, error) {
	select {
	case m := <-reply:
		return m, nil
	case <-c.done:
	case <-ctx.Done():
	}
	select {
	case m := <-reply:
		return m, nil
	default:
	}
	if err := c.Err(); err != nil {
		return message{}, err
	}
	return message{}, fmt.Errorf("no reply: %w", ctx.Err())
}

// send writes one command and returns where its reply will come. The caller
// has acquired the wire.
func (c *Client) send(ctx context.Context, req request, f *os.File) (<-chan message, error) {
	id, reply, err := c.register()
	if err != nil {
		return nil, err
	}
	req.ID = id
	line, err := json.Marshal(req)
	if err != nil {
		c.forget(id)
		return nil, fmt.Errorf("encode command: %w", err)
	}
	n, err := c.write(ctx, append(line, '\n'), f)
	switch {
	case err == nil, isHangup(err):
		// After a hang-up the reader is about to come to the stream's end, but
		// not before QEMU's last words, so it is left to end the connection.
		return reply, nil
	case n > 0:
		// Whatever we wrote next would be taken for the rest of this command.
		c.fail(fmt.Errorf("write %s: %d of %d bytes: %w", req.Execute, n, len(line)+1, err))
		return nil, fmt.Errorf("%w: %w", c.Err(), cmp.Or(ctx.Err(), err))
	default:
		c.forget(id)
		return nil, fmt.Errorf("not sent: %w", cmp.Or(ctx.Err(), err))
	}
}

func isHangup(err error) bool {
	return errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, net.ErrClosed)
}

// write writes until ctx ends and tells how many bytes went out.
func (c *Client) write(ctx context.Context, line []byte, f *os.File) (int, error) {
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		c.conn.SetWriteDeadline(time.Unix(1, 0)) // errs only on a closed connection
	})
	n, err := c.writeWithFile(line, f)
	if !stop() {
		<-interrupted
		c.conn.SetWriteDeadline(time.Time{})
	}
	return n, err
}

// writeWithFile attaches the file to the line's first bytes: QEMU looks for it
// when it has read the whole command (unix(7), SCM_RIGHTS).
func (c *Client) writeWithFile(line []byte, f *os.File) (int, error) {
	if f == nil {
		return c.conn.Write(line)
	}
	// Not f.Fd(), which would make the caller's file blocking.
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var n int
	var writeErr error
	err = raw.Control(func(fd uintptr) {
		n, _, writeErr = c.conn.WriteMsgUnix(line, unix.UnixRights(int(fd)), nil)
	})
	if err = errors.Join(err, writeErr); err != nil || n == len(line) {
		return n, err
	}
	rest, err := c.conn.Write(line[n:])
	return n + rest, err
}

// register opens a place for the reply to the next command. A command that was
// given up keeps its place until QEMU answers it: see deliver.
func (c *Client) register() (uint64, <-chan message, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, nil, c.err
	}
	c.lastID++
	reply := make(chan message, 1)
	c.pending[c.lastID] = reply
	return c.lastID, reply, nil
}

func (c *Client) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, id)
}
