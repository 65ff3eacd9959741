package dhcp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/net/bpf"
)

// etherTypeAll gives a socket all frames, those that the host itself sends too
// (linux/if_ether.h, ETH_P_ALL).
const etherTypeAll = 0x0003

// ListenGuest opens a raw socket on a guest's TAP, for Sight: it gives the frames
// that may tell the guest's address, whichever DHCP server it asks, and none if
// it asks none. It needs CAP_NET_RAW; the caller closes it.
func ListenGuest(tap string, guest net.HardwareAddr) (*os.File, error) {
	hw, err := parseMAC(guest)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", tap, err)
	}
	return listen(tap, etherTypeAll, guestFilter(hw))
}

// guestFilter passes a guest's own ARP and IPv4 frames, and UDP datagrams to a
// DHCP client's port.
func guestFilter(guest mac) []bpf.Instruction {
	high, low := binary.BigEndian.Uint32(guest[:4]), uint32(binary.BigEndian.Uint16(guest[4:]))
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: 12, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: etherTypeARP, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: etherTypeIPv4, SkipTrue: 12},
		bpf.LoadAbsolute{Off: 6, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: high, SkipTrue: 2},
		bpf.LoadAbsolute{Off: 10, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: low, SkipTrue: 7},
		bpf.LoadAbsolute{Off: 12, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: etherTypeIPv4, SkipTrue: 6},
		bpf.LoadAbsolute{Off: etherLen + 9, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: protocolUDP, SkipTrue: 4},
		bpf.LoadMemShift{Off: etherLen},
		bpf.LoadIndirect{Off: etherLen + 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: clientPort, SkipTrue: 1},
		bpf.RetConstant{Val: acceptAll},
		bpf.RetConstant{Val: 0},
	}
}

// Sight waits until a guest's IPv4 address is seen on a link of ListenGuest: it
// is in the guest's ARP packets and datagrams, and in the DHCP answer that gives
// it. An address that a machine gave itself for lack of one (RFC 3927) does not
// count. The link must not be shared. An error is the link's, or the context's.
func Sight(ctx context.Context, link Link, guest net.HardwareAddr) (netip.Addr, error) {
	hw, err := parseMAC(guest)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("watch guest: %w", err)
	}
	var seen netip.Addr
	watching, found := context.WithCancel(ctx)
	defer found()
	err = receive(watching, link, func(frame []byte) {
		if addr := guestAddress(frame, hw); usable(addr) && !seen.IsValid() {
			seen = addr
			found()
		}
	})
	switch {
	case seen.IsValid():
		return seen, nil
	case err != nil:
		return netip.Addr{}, fmt.Errorf("watch guest: %w", err)
	case ctx.Err() != nil:
		return netip.Addr{}, context.Cause(ctx)
	}
	return netip.Addr{}, errors.New("watch guest: the link ended")
}

// Asks tells whether a frame asks a DHCP server for something.
func Asks(frame []byte) bool {
	_, ok := parseFrame(frame)
	return ok
}

// Answers tells whether a frame of ListenGuest is for a DHCP client.
func Answers(frame []byte) bool {
	if len(frame) < etherLen+ipv4Len || binary.BigEndian.Uint16(frame[12:]) != etherTypeIPv4 || frame[etherLen+9] != protocolUDP {
		return false
	}
	udp := etherLen + int(frame[etherLen]&15)*4
	return len(frame) >= udp+udpLen && binary.BigEndian.Uint16(frame[udp+2:]) == clientPort
}

func usable(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsLinkLocalUnicast() && !a.IsLoopback() && !a.IsMulticast()
}

// guestAddress is the address that a frame tells of a guest, or none.
func guestAddress(frame []byte, guest mac) netip.Addr {
	if len(frame) < etherLen+ipv4Len {
		return netip.Addr{}
	}
	from := mac(frame[6:12])
	switch binary.BigEndian.Uint16(frame[12:]) {
	case etherTypeARP:
		if p, ok := parseARP(frame); ok && from == guest && p.senderMAC == guest {
			return p.sender
		}
	case etherTypeIPv4:
		if from == guest {
			return netip.AddrFrom4([4]byte(frame[etherLen+12:]))
		}
		return grantedAddress(frame[etherLen:], guest)
	}
	return netip.Addr{}
}

// grantedAddress is what a DHCP server's answer in an IPv4 packet gives a guest.
func grantedAddress(ip []byte, guest mac) netip.Addr {
	header := int(ip[0]&15) * 4
	if header < ipv4Len || len(ip) < header+udpLen {
		return netip.Addr{}
	}
	answer, err := dhcpv4.FromBytes(ip[header+udpLen:])
	if err != nil || answer.MessageType() != dhcpv4.MessageTypeAck || answer.OpCode != dhcpv4.OpcodeBootReply {
		return netip.Addr{}
	}
	if hw, err := parseMAC(answer.ClientHWAddr); err != nil || hw != guest {
		return netip.Addr{}
	}
	addr, _ := netip.AddrFromSlice(answer.YourIPAddr.To4())
	return addr
}
