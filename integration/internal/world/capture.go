package world

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/integration/internal/sandbox"
)

// Frame is an Ethernet frame as it was on a wire.
type Frame struct {
	Destination, Source net.HardwareAddr
	VLAN                int    // 0: without a tag
	Type                uint16 // the EtherType behind the tag
	Payload             []byte
}

func (f Frame) String() string {
	return fmt.Sprintf("%v > %v vlan %d type %#04x, %d bytes", f.Source, f.Destination, f.VLAN, f.Type, len(f.Payload))
}

// Tap listens on a link for frames in both directions and can send some.
type Tap struct {
	fd    int
	index int
	file  *os.File
}

// NewTap starts to listen; frames that pass from then on are kept until Frames
// asks for them.
func NewTap(t *testing.T, ns *sandbox.Namespace, link string) *Tap {
	t.Helper()
	l, err := ns.Links().LinkByName(link)
	if err != nil {
		t.Fatalf("find %s: %v", link, err)
	}
	tap := &Tap{index: l.Attrs().Index}
	err = ns.Do(func() (err error) {
		all := int(htons(unix.ETH_P_ALL))
		if tap.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all); err != nil {
			return err
		}
		tap.file = os.NewFile(uintptr(tap.fd), "packet socket")
		return errors.Join(
			unix.SetsockoptInt(tap.fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1),
			unix.SetsockoptInt(tap.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20),
			unix.Bind(tap.fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: tap.index}),
		)
	})
	if err != nil {
		t.Fatalf("listen on %s: %v", link, err)
	}
	t.Cleanup(func() { tap.file.Close() })
	return tap
}

// Frames gives all frames that passed so far.
func (tap *Tap) Frames(t *testing.T) []Frame {
	t.Helper()
	var all []Frame
	for {
		frame, err := tap.read()
		if errors.Is(err, unix.EAGAIN) {
			return all
		}
		if err != nil {
			t.Fatalf("read frame: %v", err)
		}
		all = append(all, frame)
	}
}

// Wait gives the first frame that match accepts, or fails the test when none
// has passed in time.
func (tap *Tap) Wait(t *testing.T, limit time.Duration, match func(Frame) bool) Frame {
	t.Helper()
	end := time.Now().Add(limit)
	for {
		frame, err := tap.read()
		switch {
		case err == nil && match(frame):
			return frame
		case err == nil, errors.Is(err, unix.EINTR):
		case !errors.Is(err, unix.EAGAIN):
			t.Fatalf("read frame: %v", err)
		case time.Now().After(end):
			t.Fatalf("no such frame within %v", limit)
		default:
			poll := []unix.PollFd{{Fd: int32(tap.fd), Events: unix.POLLIN}}
			unix.Poll(poll, int(time.Until(end).Milliseconds())+1) // an error shows at the next read
		}
	}
}

// Send puts a whole frame on the link, tag included, as if a neighbour of the
// link's owner had sent it from there.
func (tap *Tap) Send(frame []byte) error {
	if err := unix.Sendto(tap.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: tap.index}); err != nil {
		return fmt.Errorf("send frame: %w", err)
	}
	return nil
}

// read takes one frame. The kernel has moved a tag out of the frame into
// auxiliary data, struct tpacket_auxdata of packet(7).
func (tap *Tap) read() (Frame, error) {
	data, control := make([]byte, 1<<16), make([]byte, 256)
	n, controlSize, _, _, err := unix.Recvmsg(tap.fd, data, control, 0)
	if err != nil {
		return Frame{}, err
	}
	if n < 14 {
		return Frame{}, fmt.Errorf("a frame of %d bytes", n)
	}
	f := Frame{
		Destination: data[0:6], Source: data[6:12],
		Type: binary.BigEndian.Uint16(data[12:]), Payload: data[14:n],
	}
	if f.Type == unix.ETH_P_8021Q && n >= 18 {
		f.VLAN = int(binary.BigEndian.Uint16(data[14:]) & 0xfff)
		f.Type, f.Payload = binary.BigEndian.Uint16(data[16:]), data[18:n]
	}
	messages, err := unix.ParseSocketControlMessage(control[:controlSize])
	if err != nil {
		return Frame{}, err
	}
	for _, m := range messages {
		if m.Header.Level != unix.SOL_PACKET || m.Header.Type != unix.PACKET_AUXDATA || len(m.Data) < int(unsafe.Sizeof(auxdata{})) {
			continue
		}
		aux := (*auxdata)(unsafe.Pointer(&m.Data[0]))
		if aux.Status&unix.TP_STATUS_VLAN_VALID != 0 {
			f.VLAN = int(aux.TCI & 0xfff)
		}
	}
	return f, nil
}

// auxdata is struct tpacket_auxdata of linux/if_packet.h.
type auxdata struct {
	Status, Length, Snapped uint32
	MAC, Net, TCI, TPID     uint16
}

func htons(v uint16) uint16 {
	return v<<8 | v>>8
}
