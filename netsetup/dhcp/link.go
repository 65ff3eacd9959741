package dhcp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Link carries Ethernet frames, one by each Read and each Write. The *os.File of
// Listen is one, and so is either end of a net.Pipe.
type Link interface {
	io.ReadWriter
	SetReadDeadline(time.Time) error
}

// receiveBuffer is enough for a second of a thousand clients' requests, in bytes
// as the kernel counts them.
const receiveBuffer = 4 << 20

// Listen opens a raw socket (packet(7)) on an interface that gives DHCP requests
// and nothing else: the kernel filters, so that bulk traffic costs nothing here.
// Nobody's socket on port 67 is in its way. It needs CAP_NET_RAW; the caller
// closes it.
func Listen(iface string) (*os.File, error) {
	return listen(iface, etherTypeIPv4, requestFilter())
}

// ListenARP is Listen for the ARP packets of an interface, for Probe and Defend.
func ListenARP(iface string) (*os.File, error) {
	return listen(iface, etherTypeARP, hostFilter())
}

func listen(iface string, etherType uint16, filter []bpf.Instruction) (*os.File, error) {
	ifi, err := net.InterfaceByName(iface)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", iface, err)
	}
	// Protocol 0 receives nothing: no frame comes in before the filter is there.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: open packet socket: %w", iface, err)
	}
	f := os.NewFile(uintptr(fd), "packet:"+iface)
	if err := setUp(fd, ifi.Index, etherType, filter); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", iface, err), f.Close())
	}
	return f, nil
}

func setUp(fd, ifindex int, etherType uint16, filter []bpf.Instruction) error {
	raw, err := bpf.Assemble(filter)
	if err != nil {
		return fmt.Errorf("assemble filter: %w", err)
	}
	code := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		code[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	program := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program); err != nil {
		return fmt.Errorf("attach filter: %w", err)
	}
	// Beyond the system's limit only with CAP_NET_ADMIN of the first user
	// namespace; less is no fault.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	}
	// A socket of one protocol does not see what the host itself sends.
	to := unix.SockaddrLinklayer{Protocol: etherType<<8 | etherType>>8, Ifindex: ifindex}
	if err := unix.Bind(fd, &to); err != nil {
		return fmt.Errorf("bind packet socket: %w", err)
	}
	return nil
}

// acceptAll is how many bytes of a frame a filter lets through.
const acceptAll = 1 << 18

// hostFilter drops frames for other machines. Tagged frames are among them: by
// the time that a socket of one protocol sees one, its tag is gone, and that it
// is not for this host is all that is left of it (Linux, net/core/dev.c).
func hostFilter() []bpf.Instruction {
	const otherHost = 3 // PACKET_OTHERHOST
	return []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtType},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: otherHost, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		bpf.RetConstant{Val: acceptAll},
	}
}

// requestFilter lets through what may be a DHCP request: no cut, no answer of
// its own; parseFrame looks closer.
func requestFilter() []bpf.Instruction {
	f := hostFilter()
	return append(f[:len(f)-1], portFilter()...)
}

// portFilter passes unfragmented IPv4 UDP datagrams to port 67.
func portFilter() []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: 12, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: etherTypeIPv4, SkipTrue: 8},
		bpf.LoadAbsolute{Off: etherLen + 9, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: protocolUDP, SkipTrue: 6},
		bpf.LoadAbsolute{Off: etherLen + 6, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x3fff, SkipTrue: 4},
		bpf.LoadMemShift{Off: etherLen},
		bpf.LoadIndirect{Off: etherLen + 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: serverPort, SkipTrue: 1},
		bpf.RetConstant{Val: acceptAll},
		bpf.RetConstant{Val: 0},
	}
}

// receive calls handle with each frame of a link until ctx ends, and then
// returns nil. The frame's memory is handle's until it returns.
func receive(ctx context.Context, link Link, handle func(frame []byte)) error {
	stop := context.AfterFunc(ctx, func() { _ = link.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 1<<14)
	for {
		n, err := link.Read(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENETDOWN): // told once; frames come again when the link is up
		case err != nil:
			return fmt.Errorf("read frame: %w", err)
		default:
			handle(buf[:n])
		}
	}
}
