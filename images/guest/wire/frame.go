// Package wire is the protocol between the host and vmrun's agent in a guest: on
// one byte stream, a virtio-serial port, any number of requests at once, each
// with flow-controlled channels of its own.
//
// Neither side believes the other. Bytes that are no frame make the receiver
// look for the next hello, which begins a session; so both ends find each other
// again after a restart of either, or after the guest was restored from a
// snapshot in the middle of a frame.
package wire

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Version is the protocol's; the hello of both sides tells it.
const Version = 1

// PortName is the name of the virtio-serial port that the protocol runs on.
const PortName = "org.vmrun.agent"

// Kind is what a frame is.
type Kind uint8

// Kinds of frames. A stream is opened by the host and ends with the guest's
// result; nothing that comes for it afterwards counts.
const (
	KindHello   Kind = iota + 1 // Hello, on stream 0
	KindOpen                    // host: Request
	KindStarted                 // guest: Started
	KindData                    // channel, data: as much as there is credit for
	KindEnd                     // channel: there is no more data
	KindCredit                  // channel, uint32: so many more bytes may be sent
	KindStop                    // channel: the receiver wants no more data
	KindControl                 // host: Control
	KindResult                  // guest: Result, the stream's last frame
	KindCancel                  // host: nobody waits for the result
)

// Sizes in bytes.
const (
	// A frame is what the guest's driver takes in one write (Linux,
	// drivers/char/virtio_console.c, port_fops_write).
	maxFrame   = 32 << 10
	headerLen  = 12
	maxPayload = maxFrame - headerLen
	maxData    = maxPayload - 1 // behind the channel
	maxHello   = 1 << 10
)

// magic begins each frame; then come the kind, and stream and length as
// little-endian uint32. Zeros between frames are padding.
var magic = [3]byte{0xf5, 'v', 'm'}

// Frame is one message.
type Frame struct {
	Kind    Kind
	Stream  uint32
	Payload []byte
}

// appendFrame encodes a frame whose payload comes in parts.
func appendFrame(b []byte, kind Kind, stream uint32, payload ...[]byte) []byte {
	length := 0
	for _, p := range payload {
		length += len(p)
	}
	if length > maxPayload {
		panic(fmt.Sprintf("frame of kind %d with %d bytes", kind, length))
	}
	b = append(b, magic[:]...)
	b = append(b, byte(kind))
	b = binary.LittleEndian.AppendUint32(b, stream)
	b = binary.LittleEndian.AppendUint32(b, uint32(length))
	for _, p := range payload {
		b = append(b, p...)
	}
	return b
}

// errLost is told once when what comes is no longer frames.
var errLost = errors.New("lost track of the frames")

// decoder takes frames from a byte stream. It begins without knowing where one
// begins.
type decoder struct {
	r     *bufio.Reader
	found bool // r is at the beginning of a frame
	buf   []byte
}

func newDecoder(r io.Reader) *decoder {
	return &decoder{r: bufio.NewReaderSize(r, 2*maxFrame), buf: make([]byte, maxPayload)}
}

// next returns the next frame, whose payload is valid until the next call. It
// returns errLost when the stream's other side says something else than frames;
// what comes next is a hello then. Other errors are the reader's.
func (d *decoder) next() (Frame, error) {
	if !d.found {
		return d.findHello()
	}
	var header [headerLen]byte
	for header[0] == 0 {
		b, err := d.r.ReadByte()
		if err != nil {
			return Frame{}, err
		}
		header[0] = b
	}
	if _, err := io.ReadFull(d.r, header[1:]); err != nil {
		return Frame{}, err
	}
	f, length, ok := parseHeader(header[:])
	if !ok {
		d.found = false
		return Frame{}, errLost
	}
	f.Payload = d.buf[:length]
	_, err := io.ReadFull(d.r, f.Payload)
	return f, err
}

func parseHeader(header []byte) (f Frame, length uint32, ok bool) {
	f.Kind = Kind(header[3])
	f.Stream = binary.LittleEndian.Uint32(header[4:])
	length = binary.LittleEndian.Uint32(header[8:])
	ok = [3]byte(header) == magic && f.Kind >= KindHello && f.Kind <= KindCancel && length <= maxPayload
	return f, length, ok
}

// findHello skips to the next hello.
func (d *decoder) findHello() (Frame, error) {
	for {
		header, err := d.r.Peek(headerLen)
		if err != nil {
			return Frame{}, err
		}
		f, length, ok := parseHeader(header)
		if ok && f.Kind == KindHello && length <= maxHello {
			whole, err := d.r.Peek(headerLen + int(length))
			if err != nil {
				return Frame{}, err
			}
			if f.Payload = whole[headerLen:]; json.Valid(f.Payload) {
				d.found = true
				f.Payload = d.buf[:copy(d.buf, f.Payload)]
				_, err = d.r.Discard(headerLen + int(length))
				return f, err
			}
		}
		if _, err := d.r.Discard(1); err != nil {
			return Frame{}, err
		}
	}
}
