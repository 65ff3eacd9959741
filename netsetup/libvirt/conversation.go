package libvirt

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"

	rpc "github.com/digitalocean/go-libvirt"
	"golang.org/x/sys/unix"
)

// driver is the part of libvirt that has the networks; every daemon that serves
// them takes it, whatever hypervisor the others are for.
const driver = rpc.ConnectURI("network:///system")

// converse connects, talks and disconnects within ctx. The RPC library knows no
// deadlines: one on the connection makes it spin, for it takes that for a passing
// fault. So the connection is closed when ctx ends, and what the library says
// from then on ("invalid argument") is not listened to.
func converse[T any](ctx context.Context, d Daemon, what string, talk func(*rpc.Libvirt) (T, error)) (T, error) {
	var none T
	conn, err := d.dial(ctx)
	if err != nil {
		return none, fmt.Errorf("%s: %w", what, err)
	}
	defer conn.Close()
	type answer struct {
		value T
		err   error
	}
	answered := make(chan answer, 1)
	go func() {
		var a answer
		a.value, a.err = talkOver(conn, talk)
		answered <- a
	}()
	select {
	case a := <-answered:
		// The library's words for a connection that has ended.
		if errors.Is(a.err, unix.EINVAL) || errors.Is(a.err, rpc.ErrInterrupted) {
			a.err = conn.fault()
		}
		if a.err != nil {
			return none, fmt.Errorf("%s: ask libvirt at %s: %w", what, conn.RemoteAddr(), a.err)
		}
		return a.value, nil
	case <-ctx.Done():
		return none, fmt.Errorf("%s: libvirt at %s does not answer: %w", what, conn.RemoteAddr(), context.Cause(ctx))
	}
}

func talkOver[T any](conn net.Conn, talk func(*rpc.Libvirt) (T, error)) (T, error) {
	c := rpc.NewWithDialer(connected{conn})
	if err := c.ConnectToURI(driver); err != nil {
		var none T
		return none, err
	}
	defer c.Disconnect() // it says goodbye; the answer is there already
	return talk(c)
}

// dial connects with the first daemon that listens.
func (d Daemon) dial(ctx context.Context) (*framed, error) {
	for _, path := range d.Sockets {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
		switch {
		case err == nil:
			return &framed{Conn: conn}, nil
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ENOTDIR):
			continue
		}
		return nil, err
	}
	return nil, fmt.Errorf("%w (looked for %s)", ErrAbsent, strings.Join(d.Sockets, ", "))
}

// connected is the library's dialer for a connection that is there already.
type connected struct{ conn net.Conn }

// Dial implements socket.Dialer.
func (c connected) Dial() (net.Conn, error) { return c.conn, nil }

// Bounds of a packet in bytes: its length and header, and
// VIR_NET_MESSAGE_MAX of libvirt's virnetprotocol.x.
const (
	minPacket = 4 + 24
	maxPacket = 32<<20 + 4
)

// framed ends a connection whose other end does not speak libvirt's protocol:
// the library takes whatever comes for a length.
type framed struct {
	net.Conn
	head    [4]byte
	pending []byte // of head, not yet read
	left    int    // bytes of the packet, pending ones included
	ended   atomic.Pointer[error]
}

// fault is why nothing more can be read.
func (f *framed) fault() error {
	if err := f.ended.Load(); err != nil {
		return *err
	}
	return errors.New("the connection ended")
}

// Read implements net.Conn.
func (f *framed) Read(p []byte) (int, error) {
	n, err := f.read(p)
	if err != nil {
		f.ended.CompareAndSwap(nil, &err)
	}
	return n, err
}

func (f *framed) read(p []byte) (int, error) {
	if f.left == 0 {
		if _, err := io.ReadFull(f.Conn, f.head[:]); err != nil {
			return 0, fmt.Errorf("the connection ended: %w", err)
		}
		size := binary.BigEndian.Uint32(f.head[:])
		if size < minPacket || size > maxPacket {
			return 0, fmt.Errorf("it sent a packet of %d bytes, which is not libvirt's protocol", size)
		}
		f.left, f.pending = int(size), f.head[:]
	}
	if len(f.pending) > 0 {
		n := copy(p, f.pending)
		f.pending = f.pending[n:]
		f.left -= n
		return n, nil
	}
	n, err := f.Conn.Read(p[:min(len(p), f.left)])
	f.left -= n
	return n, err
}
