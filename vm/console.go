package vm

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
)

// consoleRing is how much of a guest's output is kept for readers, in bytes.
const consoleRing = 1 << 20

// console is the host's end of a guest's serial port. What the guest writes is
// taken at once, whoever reads it and however slowly: a guest never waits.
type console struct {
	conn net.Conn
	log  io.Writer // gets everything
	warn *slog.Logger

	mu      sync.Mutex
	changed *sync.Cond
	ring    []byte // the byte at offset n of all output is ring[n%len(ring)]
	end     int64  // offset of the next byte
	eof     bool
}

func newConsole(conn net.Conn, log io.Writer, warn *slog.Logger) *console {
	c := &console{conn: conn, log: log, warn: warn, ring: make([]byte, consoleRing)}
	c.changed = sync.NewCond(&c.mu)
	return c
}

// drain takes the guest's output until the guest is gone.
func (c *console) drain() {
	buf := make([]byte, 32<<10)
	for {
		n, err := c.conn.Read(buf)
		if n > 0 {
			c.record(buf[:n])
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

// record appends to the log, which ends with the first failure: a full disk
// must not stop the guest.
func (c *console) record(output []byte) {
	if _, err := c.log.Write(output); err != nil {
		c.warn.Warn("the console is no longer logged", "cause", err)
		c.log = io.Discard
	}
}

// silent tells that the guest has written nothing so far.
func (c *console) silent() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.end == 0
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
func (v *Console) Write(p []byte) (int, error) { return v.console.conn.Write(p) }

// Close ends this view; a Read that waits returns. The guest sees nothing of it.
func (v *Console) Close() error {
	v.console.mu.Lock()
	defer v.console.mu.Unlock()
	v.closed = true
	v.console.changed.Broadcast()
	return nil
}
