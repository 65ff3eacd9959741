package vm

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/vmrun/vmrun/vm/agent"
)

// consoleRing is how much of a guest's output is kept for readers, in bytes.
const consoleRing = 1 << 20

// console is the host's end of a guest's serial port. What the guest writes is
// taken at once, whoever reads it and however slowly: a guest never waits.
type console struct {
	conn  net.Conn
	log   io.Writer     // gets everything, and never fails
	input chan struct{} // holds a token while somebody writes to the guest

	mu      sync.Mutex
	changed *sync.Cond
	ring    []byte // the byte at offset n of all output is ring[n%len(ring)]
	end     int64  // offset of the next byte
	eof     bool
}

func newConsole(conn net.Conn, log io.Writer) *console {
	c := &console{conn: conn, log: log, input: make(chan struct{}, 1), ring: make([]byte, consoleRing)}
	c.changed = sync.NewCond(&c.mu)
	return c
}

// drain takes the guest's output until the guest is gone.
func (c *console) drain() {
	buf := make([]byte, 32<<10)
	for {
		n, err := c.conn.Read(buf)
		if n > 0 {
			c.log.Write(buf[:n])
			c.publish(buf[:n])
		}
		if err != nil {
			c.mu.Lock()
			c.eof = true
			c.mu.Unlock()
			c.changed.Broadcast()
			return
		}
	}
}

// silent tells that the guest has written nothing so far.
func (c *console) silent() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.end == 0
}

// tail is a copy of the last bytes of the output so far.
func (c *console) tail(most int64) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	size := int64(len(c.ring))
	tail := make([]byte, 0, most)
	for at := max(0, c.end-min(most, size)); at < c.end; at++ {
		tail = append(tail, c.ring[at%size])
	}
	return tail
}

func (c *console) publish(output []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(output) > 0 {
		n := copy(c.ring[c.end%int64(len(c.ring)):], output)
		c.end += int64(n)
		output = output[n:]
	}
	c.changed.Broadcast()
}

// Console is one client's view of a guest's serial port. Clients see the same
// output, each at its own pace, and what they write is mixed. Read and Write
// may be called at the same time.
type Console struct {
	console *console
	agent   *agent.VMRun
	pos     int64 // offset of the next byte to read
	closed  bool  // by Close; guarded by console.mu
}

// Read waits for output and returns what there is; io.EOF when the guest is
// gone and everything was read, or after Close. Whoever falls behind by more
// than a megabyte finds a line that says how much was skipped.
func (v *Console) Read(p []byte) (int, error) {
	c := v.console
	c.mu.Lock()
	defer c.mu.Unlock()
	for v.pos == c.end && !c.eof && !v.closed {
		c.changed.Wait()
	}
	if v.closed || v.pos == c.end {
		return 0, io.EOF
	}
	if skipped := c.end - int64(len(c.ring)) - v.pos; skipped > 0 {
		v.pos += skipped
		return copy(p, fmt.Sprintf("\r\n[vmrun: %d bytes skipped]\r\n", skipped)), nil
	}
	from := v.pos % int64(len(c.ring))
	n := copy(p, c.ring[from:min(int64(len(c.ring)), from+c.end-v.pos)])
	v.pos += int64(n)
	return n, nil
}

// Write sends input to the guest, and waits while the guest does not take it.
func (v *Console) Write(p []byte) (int, error) { return v.WriteContext(context.Background(), p) }

// WriteContext is Write until a context ends.
func (v *Console) WriteContext(ctx context.Context, p []byte) (int, error) {
	c := v.console
	select {
	case c.input <- struct{}{}:
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	defer func() { <-c.input }()
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		c.conn.SetWriteDeadline(time.Unix(1, 0)) // errs only on a closed connection
	})
	n, err := c.conn.Write(p)
	if !stop() {
		<-interrupted
		c.conn.SetWriteDeadline(time.Time{})
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return n, err
}

// Resize tells the guest the size of the terminal that shows this view, if vmrun's
// own agent is in the guest, now or later; any other guest stays as it is. Of
// several views the last one that was resized counts. It does not wait.
func (v *Console) Resize(size agent.Size) { v.agent.ResizeConsole(size) }

// backTo moves the view to the last so many lines.
func (v *Console) backTo(lines int) {
	c := v.console
	c.mu.Lock()
	defer c.mu.Unlock()
	size := int64(len(c.ring))
	oldest := max(0, c.end-size)
	for v.pos = c.end; lines > 0 && v.pos > oldest; v.pos-- {
		// The last line's own end begins no other.
		if v.pos == c.end || c.ring[(v.pos-1)%size] != '\n' {
			continue
		}
		if lines--; lines == 0 {
			return
		}
	}
}

// Close ends this view; a Read that waits returns. The guest sees nothing of it.
func (v *Console) Close() error {
	v.console.mu.Lock()
	defer v.console.mu.Unlock()
	v.closed = true
	v.console.changed.Broadcast()
	return nil
}
