package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Packet is a frame that has passed an interface.
type Packet struct {
	Time     time.Time // when the kernel saw it
	Data     []byte    // from the Ethernet header on, cut at the snapshot length
	Length   int       // of the whole frame, in bytes
	Outbound bool      // sent by the host; for a TAP: towards the guest
}

// Source is an interface that is listened to. One goroutine reads it; Close may
// be called by any.
type Source struct {
	name string
	file *os.File
	raw  interface {
		Read(func(fd uintptr) bool) error
		Control(func(fd uintptr)) error
	}
	closed  atomic.Bool
	buf     []byte // room for the tag that the kernel takes out, then the frame
	control []byte
}

// MaxSnapshot is the longest snapshot length: whole frames, those of segmentation
// offload included, in bytes.
const MaxSnapshot = 1 << 18

// receiveBuffer holds what passes while the reader is busy, in bytes as the
// kernel counts them.
const receiveBuffer = 16 << 20

// Open starts to listen on an interface of the process's network namespace, to
// frames in both directions, of which the first snapshot bytes are kept. It
// needs CAP_NET_RAW; the caller closes the source (packet(7)).
func Open(iface string, snapshot int) (*Source, error) {
	if snapshot < 1 || snapshot > MaxSnapshot {
		return nil, fmt.Errorf("capture %s: a snapshot of %d bytes: want 1 to %d", iface, snapshot, MaxSnapshot)
	}
	ifi, err := net.InterfaceByName(iface)
	if err != nil {
		return nil, fmt.Errorf("capture %s: %w", iface, err)
	}
	// Protocol 0 receives nothing: no frame of another interface comes in before
	// the socket is bound.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("capture %s: open packet socket: %w", iface, err)
	}
	s := &Source{name: iface, file: os.NewFile(uintptr(fd), "packet:"+iface),
		buf: make([]byte, tagLen+snapshot), control: make([]byte, 256)}
	if err := setUp(fd, ifi.Index); err != nil {
		return nil, errors.Join(fmt.Errorf("capture %s: %w", iface, err), s.file.Close())
	}
	if s.raw, err = s.file.SyscallConn(); err != nil {
		return nil, errors.Join(fmt.Errorf("capture %s: %w", iface, err), s.file.Close())
	}
	return s, nil
}

func setUp(fd, ifindex int) error {
	for _, option := range []struct{ level, name int }{
		{unix.SOL_PACKET, unix.PACKET_AUXDATA},
		{unix.SOL_SOCKET, unix.SO_TIMESTAMPNS},
	} {
		if err := unix.SetsockoptInt(fd, option.level, option.name, 1); err != nil {
			return fmt.Errorf("set up packet socket: %w", err)
		}
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer) // less is no fault
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: ifindex}); err != nil {
		return fmt.Errorf("bind packet socket: %w", err)
	}
	return nil
}

func networkOrder(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

// Read waits for the next frame. Its data is valid until the next call. The
// error is os.ErrClosed after Close, and ErrGone when the interface has gone or
// is down.
func (s *Source) Read() (Packet, error) {
	var p Packet
	var err error
	waitErr := s.raw.Read(func(fd uintptr) bool {
		p, err = s.receive(int(fd))
		return !errors.Is(err, unix.EAGAIN)
	})
	switch {
	case s.closed.Load():
		return Packet{}, os.ErrClosed
	case waitErr != nil:
		return Packet{}, fmt.Errorf("capture %s: %w", s.name, waitErr)
	case errors.Is(err, unix.ENETDOWN), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return Packet{}, ErrGone
	case err != nil:
		return Packet{}, fmt.Errorf("capture %s: %w", s.name, err)
	}
	return p, nil
}

// ErrGone says that the interface of a Source is down or has gone, as a TAP does
// with its VM.
var ErrGone = errors.New("the interface is gone")

func (s *Source) receive(fd int) (Packet, error) {
	frame := s.buf[tagLen:]
	n, controlLen, _, from, err := unix.Recvmsg(fd, frame, s.control, unix.MSG_TRUNC)
	if err != nil {
		return Packet{}, err
	}
	p := Packet{Time: time.Now(), Data: frame[:min(n, len(frame))], Length: n}
	if link, ok := from.(*unix.SockaddrLinklayer); ok {
		p.Outbound = link.Pkttype == unix.PACKET_OUTGOING
	}
	messages, err := unix.ParseSocketControlMessage(s.control[:controlLen])
	if err != nil {
		return Packet{}, err
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= int(unsafe.Sizeof(unix.Timespec{})):
			at := (*unix.Timespec)(unsafe.Pointer(&m.Data[0]))
			p.Time = time.Unix(at.Unix())
		case m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA && len(m.Data) >= int(unsafe.Sizeof(auxdata{})):
			s.restoreTag(&p, (*auxdata)(unsafe.Pointer(&m.Data[0])))
		}
	}
	return p, nil
}

// auxdata is struct tpacket_auxdata of linux/if_packet.h.
type auxdata struct {
	Status, Length, Snapped uint32
	MAC, Net, TCI, TPID     uint16
}

const (
	tagLen      = 4  // 802.1Q: TPID and TCI
	tagOffset   = 12 // behind both addresses
	etherLen    = 14
	defaultTPID = unix.ETH_P_8021Q
)

// restoreTag puts a VLAN tag back where it was on the wire: the kernel has moved
// it out of the frame.
func (s *Source) restoreTag(p *Packet, aux *auxdata) {
	if aux.Status&unix.TP_STATUS_VLAN_VALID == 0 || len(p.Data) < tagOffset {
		return
	}
	tpid := uint16(defaultTPID)
	if aux.Status&unix.TP_STATUS_VLAN_TPID_VALID != 0 {
		tpid = aux.TPID
	}
	addresses := slices.Clone(p.Data[:tagOffset])
	whole := s.buf[:tagLen+len(p.Data)]
	copy(whole, addresses)
	binary.BigEndian.PutUint16(whole[tagOffset:], tpid)
	binary.BigEndian.PutUint16(whole[tagOffset+2:], aux.TCI)
	p.Length += tagLen
	p.Data = whole[:min(len(whole), len(s.buf)-tagLen)]
}

// Statistics are a source's counts since the last time that they were asked for
// (PACKET_STATISTICS of packet(7)).
type Statistics struct {
	Received int // frames, those included that were dropped
	Dropped  int // frames that the reader was too slow for
}

// Statistics asks for the counts.
func (s *Source) Statistics() (Statistics, error) {
	var stats *unix.TpacketStats
	var err error
	controlErr := s.raw.Control(func(fd uintptr) {
		stats, err = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	})
	if err := errors.Join(controlErr, err); err != nil {
		return Statistics{}, fmt.Errorf("count packets of %s: %w", s.name, err)
	}
	return Statistics{Received: int(stats.Packets), Dropped: int(stats.Drops)}, nil
}

// Close ends the listening; a Read that waits returns os.ErrClosed.
func (s *Source) Close() error {
	s.closed.Store(true)
	return s.file.Close()
}
