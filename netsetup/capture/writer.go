package capture

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"
	"time"
)

// Interface is one of those that a file has packets of.
type Interface struct {
	Name        string // on the host
	Description string // for people
	Snapshot    int    // bytes kept of a frame
	Filter      string // the expression of it; "": all frames
}

// Writer writes a pcapng file (draft-ietf-opsawg-pcapng): a section header, a
// description of each interface, then the packets as they come. Each of its
// writes is a whole block, so that whoever reads at the same time is never left
// with half a packet. It may be used by several goroutines.
type Writer struct {
	mu    sync.Mutex
	w     io.Writer
	block []byte
}

// Block types and options of the format.
const (
	blockSection    = 0x0a0d0d0a
	blockInterface  = 1
	blockStatistics = 5
	blockPacket     = 6

	byteOrderMagic = 0x1a2b3c4d
	linkEthernet   = 1

	optEnd             = 0
	optApplication     = 4 // of a section
	optName            = 2 // of an interface
	optDescription     = 3
	optResolution      = 9
	optFilter          = 11
	optFlags           = 2 // of a packet
	optReceived        = 4 // of statistics
	optDropped         = 5
	flagInbound        = 1
	flagOutbound       = 2
	nanoseconds        = 9 // 10^-9 s
	filterExpression   = 0 // the option's text is an expression
	sectionLenUnknown  = ^uint64(0)
	formatMajor        = 1
	formatMinor        = 0
	interfaceReserved  = 0
	alignment          = 4
	blockOverhead      = 12 // type and both lengths
	packetFixedLen     = 20
	timestampHalfwidth = 32
)

// NewWriter begins a file. The writer stays the caller's to close.
func NewWriter(w io.Writer, application string, interfaces []Interface) (*Writer, error) {
	out := &Writer{w: w}
	err := out.write(blockSection, func(b []byte) []byte {
		b = binary.LittleEndian.AppendUint32(b, byteOrderMagic)
		b = binary.LittleEndian.AppendUint16(b, formatMajor)
		b = binary.LittleEndian.AppendUint16(b, formatMinor)
		b = binary.LittleEndian.AppendUint64(b, sectionLenUnknown)
		b = appendOption(b, optApplication, []byte(application))
		return appendOption(b, optEnd, nil)
	})
	for _, i := range interfaces {
		if err == nil {
			err = out.describe(i)
		}
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (w *Writer) describe(i Interface) error {
	return w.write(blockInterface, func(b []byte) []byte {
		b = binary.LittleEndian.AppendUint16(b, linkEthernet)
		b = binary.LittleEndian.AppendUint16(b, interfaceReserved)
		b = binary.LittleEndian.AppendUint32(b, uint32(i.Snapshot))
		b = appendOption(b, optName, []byte(i.Name))
		b = appendOption(b, optDescription, []byte(i.Description))
		b = appendOption(b, optResolution, []byte{nanoseconds})
		if i.Filter != "" {
			b = appendOption(b, optFilter, append([]byte{filterExpression}, i.Filter...))
		}
		return appendOption(b, optEnd, nil)
	})
}

// Packet writes a packet of the interface at an index of those that the file
// began with.
func (w *Writer) Packet(index int, p Packet) error {
	return w.write(blockPacket, func(b []byte) []byte {
		at := uint64(p.Time.UnixNano())
		b = binary.LittleEndian.AppendUint32(b, uint32(index))
		b = binary.LittleEndian.AppendUint32(b, uint32(at>>timestampHalfwidth))
		b = binary.LittleEndian.AppendUint32(b, uint32(at))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(p.Data)))
		b = binary.LittleEndian.AppendUint32(b, uint32(p.Length))
		b = pad(append(b, p.Data...))
		flags := uint32(flagInbound)
		if p.Outbound {
			flags = flagOutbound
		}
		b = appendOption(b, optFlags, binary.LittleEndian.AppendUint32(nil, flags))
		return appendOption(b, optEnd, nil)
	})
}

// Statistics writes the counts of the interface at an index, as of now.
func (w *Writer) Statistics(index int, s Statistics, now time.Time) error {
	return w.write(blockStatistics, func(b []byte) []byte {
		at := uint64(now.UnixNano())
		b = binary.LittleEndian.AppendUint32(b, uint32(index))
		b = binary.LittleEndian.AppendUint32(b, uint32(at>>timestampHalfwidth))
		b = binary.LittleEndian.AppendUint32(b, uint32(at))
		b = appendOption(b, optReceived, binary.LittleEndian.AppendUint64(nil, uint64(s.Received)))
		b = appendOption(b, optDropped, binary.LittleEndian.AppendUint64(nil, uint64(s.Dropped)))
		return appendOption(b, optEnd, nil)
	})
}

// write puts a body between a block's type and lengths.
func (w *Writer) write(kind uint32, body func([]byte) []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	b := binary.LittleEndian.AppendUint32(w.block[:0], kind)
	b = binary.LittleEndian.AppendUint32(b, 0) // the length, once it is known
	b = body(b)
	total := uint32(len(b) + blockOverhead - 8)
	binary.LittleEndian.PutUint32(b[4:], total)
	b = binary.LittleEndian.AppendUint32(b, total)
	w.block = b
	if _, err := w.w.Write(b); err != nil {
		return fmt.Errorf("write capture: %w", err)
	}
	return nil
}

func appendOption(b []byte, code uint16, value []byte) []byte {
	b = binary.LittleEndian.AppendUint16(b, code)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
	return pad(append(b, value...))
}

// pad fills up to the format's alignment. A block's body begins aligned.
func pad(b []byte) []byte {
	for len(b)%alignment != 0 {
		b = append(b, 0)
	}
	return b
}
