// Package wire is the protocol of a virtual machine's control socket: what a
// packet is, who speaks first, how much may be under way. What can be asked is
// not its business.
//
// A connection carries one request. The client says it first; the server
// answers with a reply, or opens a stream on which both sides send messages and
// bytes until the server's reply ends it. Either side's first packet names the
// protocol's version. Packets keep their boundaries (SOCK_SEQPACKET, unix(7)),
// so a packet is there whole or not at all; what is longer is sent in parts.
// Open files go along with a message, in both directions.
package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Version is what either side's first packet names. That packet's form stays
// the same for ever: a byte, then a JSON object with "protocol" in it.
const Version = 1

const (
	maxPayload = 32 << 10  // bytes of one packet after its head
	maxFiles   = 16        // with one message
	maxRequest = 1 << 20   // bytes of a request, and of a client's messages
	maxMessage = 64 << 20  // bytes of a server's message: QEMU's longest replies fit
	window     = 128 << 10 // bytes that may be under way, unread by the other side
)

// kind is a packet's first byte.
type kind byte

const (
	kindRequest kind = 'q' // JSON, the client's first packet
	kindStarted kind = 's' // JSON: the stream is open
	kindMessage kind = 'm' // JSON, on a stream
	kindData    kind = 'd' // bytes of the channel that the second byte names
	kindEnd     kind = 'e' // the channel's end; the second byte names it
	kindTaken   kind = 'a' // so many bytes were taken out of the window
	kindReply   kind = 'r' // JSON, the server's last packet

	more kind = 0x80 // the message goes on in the next packet
)

// known tells whether a byte is a packet's kind, a part or not.
func (k kind) known() bool {
	switch k &^ more {
	case kindRequest, kindMessage, kindReply:
		return true
	case kindStarted, kindData, kindEnd, kindTaken:
		return k&more == 0
	}
	return false
}

// ErrProtocol is in the chain of the error where the other side did not keep to
// the protocol.
var ErrProtocol = errors.New("control protocol violated")

// packet is one packet as it was read. The files are the reader's.
type packet struct {
	kind  kind
	data  []byte
	files []*os.File
}

func (p packet) close() { closeFiles(p.files) }

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close() // nothing was written by us
	}
}

// packets sends and receives packets on a connection. One goroutine may read
// while others write.
type packets struct {
	conn *net.UnixConn
	buf  []byte
	oob  []byte

	mu sync.Mutex // held while writing
}

func newPackets(conn *net.UnixConn) *packets {
	return &packets{conn: conn, buf: make([]byte, 1+maxPayload), oob: make([]byte, unix.CmsgSpace(4*maxFiles))}
}

// read returns the next packet. An end of the connection is io.EOF or another
// of the connection's errors.
func (p *packets) read() (packet, error) {
	n, oobn, flags, _, err := p.conn.ReadMsgUnix(p.buf, p.oob)
	if err != nil {
		return packet{}, err
	}
	files, err := filesIn(p.oob[:oobn])
	if err != nil {
		return packet{}, err
	}
	got := packet{files: files}
	switch {
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = fmt.Errorf("%w: a packet is too long", ErrProtocol)
	case n == 0:
		err = net.ErrClosed // the other side closed; a packet has a byte at least
	case !kind(p.buf[0]).known():
		err = fmt.Errorf("%w: unknown kind of packet %#x", ErrProtocol, p.buf[0])
	}
	if err != nil {
		got.close()
		return packet{}, err
	}
	got.kind, got.data = kind(p.buf[0]), append([]byte(nil), p.buf[1:n]...)
	return got, nil
}

func filesIn(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("receive files: %w", err)
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // another kind of control message
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

// write sends one packet. The files stay the caller's.
func (p *packets) write(k kind, data []byte, files ...*os.File) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return withFDs(files, nil, func(fds []int) error {
		var rights []byte
		if len(fds) > 0 {
			rights = unix.UnixRights(fds...)
		}
		_, _, err := p.conn.WriteMsgUnix(append([]byte{byte(k)}, data...), rights, nil)
		return err
	})
}

// withFDs calls f with the files' descriptors, added to those that there are.
// File.Fd would make the caller's files blocking.
func withFDs(files []*os.File, fds []int, f func(fds []int) error) error {
	if len(files) == 0 {
		return f(fds)
	}
	raw, err := files[0].SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) { inner = withFDs(files[1:], append(fds, int(fd)), f) })
	return errors.Join(err, inner)
}

// writeJSON sends a message, in parts where it is long; take, if there is one,
// is called with the length of each part before it is sent.
func (p *packets) writeJSON(k kind, message any, files []*os.File, take func(n int) error) error {
	if len(files) > maxFiles {
		return fmt.Errorf("send message: %d files are more than %d", len(files), maxFiles)
	}
	text, err := json.Marshal(message)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if len(text) > maxMessage {
		return fmt.Errorf("send message: %d bytes are more than %d", len(text), maxMessage)
	}
	for first := true; first || len(text) > 0; first = false {
		part, rest := text, []byte(nil)
		mark := kind(0)
		if len(text) > maxPayload {
			part, rest, mark = text[:maxPayload], text[maxPayload:], more
		}
		if take != nil {
			if err := take(len(part)); err != nil {
				return err
			}
		}
		if err := p.write(k|mark, part, files...); err != nil {
			return err
		}
		text, files = rest, nil
	}
	return nil
}
