package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"
)

// Dump reads the packets of a pcap file as it is written
// (draft-ietf-opsawg-pcap), such as QEMU's of a card in mode user. One goroutine
// reads it; Close may be called by any.
type Dump struct {
	r        io.Reader
	closer   io.Closer
	snapshot int
	begun    bool
	closed   atomic.Bool
	received int
}

// NewDump reads from r, and keeps the first snapshot bytes of each packet. Close
// closes the closer.
func NewDump(r io.Reader, closer io.Closer, snapshot int) *Dump {
	return &Dump{r: r, closer: closer, snapshot: snapshot}
}

// pcapMagic begins a file with times in microseconds, in the byte order of its
// writer.
const pcapMagic = 0xa1b2c3d4

// Read waits for the next packet; io.EOF at the file's end, os.ErrClosed after
// Close. Which way a packet went is not known: none is Outbound.
func (d *Dump) Read() (Packet, error) {
	p, err := d.read()
	switch {
	case err == nil:
		d.received++
		return p, nil
	case d.closed.Load():
		return Packet{}, os.ErrClosed
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return Packet{}, io.EOF // its writer has ended, wherever that was
	}
	return Packet{}, fmt.Errorf("read packets: %w", err)
}

func (d *Dump) read() (Packet, error) {
	if !d.begun {
		var header [24]byte
		if _, err := io.ReadFull(d.r, header[:]); err != nil {
			return Packet{}, err
		}
		if binary.NativeEndian.Uint32(header[:]) != pcapMagic || binary.NativeEndian.Uint32(header[20:]) != linkEthernet {
			return Packet{}, errors.New("not a pcap file of Ethernet frames")
		}
		d.begun = true
	}
	var record [16]byte
	if _, err := io.ReadFull(d.r, record[:]); err != nil {
		return Packet{}, err
	}
	field := func(at int) uint32 { return binary.NativeEndian.Uint32(record[at:]) }
	if field(8) > MaxSnapshot {
		return Packet{}, fmt.Errorf("a packet of %d bytes", field(8))
	}
	data := make([]byte, field(8))
	if _, err := io.ReadFull(d.r, data); err != nil {
		return Packet{}, err
	}
	at := time.Unix(int64(field(0)), int64(field(4))*int64(time.Microsecond))
	return Packet{Time: at, Data: data[:min(len(data), d.snapshot)], Length: int(field(12))}, nil
}

// Statistics are the packets that were read.
func (d *Dump) Statistics() (Statistics, error) { return Statistics{Received: d.received}, nil }

// Close ends the reading.
func (d *Dump) Close() error {
	d.closed.Store(true)
	return d.closer.Close()
}
