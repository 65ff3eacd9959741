package dhcp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"
)

// How an address is probed. RFC 5227, section 1.1 takes some six seconds; a
// machine is waiting here, and one that is up answers within a millisecond.
const (
	probeCount    = 3
	probeInterval = 80 * time.Millisecond
)

const (
	arpLen     = 28
	arpRequest = 1
	arpReply   = 2
)

// arpPacket is an ARP packet for IPv4 on Ethernet (RFC 826).
type arpPacket struct {
	op                   uint16
	senderMAC, targetMAC mac
	sender, target       netip.Addr
}

func parseARP(frame []byte) (p arpPacket, ok bool) {
	if len(frame) < etherLen+arpLen || binary.BigEndian.Uint16(frame[12:]) != etherTypeARP {
		return p, false
	}
	b := frame[etherLen:]
	if [6]byte(b) != [6]byte{0, 1, 8, 0, 6, 4} {
		return p, false
	}
	p.op = binary.BigEndian.Uint16(b[6:])
	p.senderMAC, p.targetMAC = mac(b[8:14]), mac(b[18:24])
	p.sender, p.target = netip.AddrFrom4([4]byte(b[14:])), netip.AddrFrom4([4]byte(b[24:]))
	return p, p.op == arpRequest || p.op == arpReply
}

// frame is the packet in a frame between two machines.
func (p arpPacket) frame(from, to mac) []byte {
	b := append(to[:], from[:]...)
	b = binary.BigEndian.AppendUint16(b, etherTypeARP)
	b = append(b, 0, 1, 8, 0, 6, 4)
	b = binary.BigEndian.AppendUint16(b, p.op)
	b = append(append(b, p.senderMAC[:]...), p.sender.AsSlice()...)
	return append(append(b, p.targetMAC[:]...), p.target.AsSlice()...)
}

// isProbe tells a question by someone who has no address yet.
func (p arpPacket) isProbe() bool { return p.op == arpRequest && p.sender.IsUnspecified() }

// Question asks whether an address is taken by another than the one it is for.
type Question struct {
	IP     netip.Addr
	For    net.HardwareAddr // whose use of the address is no conflict
	Sender net.HardwareAddr // of the link that asks
}

// Probe asks a network whether somebody has an address, or is asking for it
// too, and returns who. It returns nil after a quarter of a second's silence.
// The link, of ListenARP, must not be shared.
func Probe(ctx context.Context, link Link, q Question) (net.HardwareAddr, error) {
	sender, err := parseMAC(q.Sender)
	if err != nil {
		return nil, fmt.Errorf("probe %s: %w", q.IP, err)
	}
	owner, err := parseMAC(q.For)
	if err != nil {
		return nil, fmt.Errorf("probe %s: %w", q.IP, err)
	}
	probe := arpPacket{op: arpRequest, senderMAC: sender, sender: netip.IPv4Unspecified(), target: q.IP}
	for range probeCount {
		if _, err := link.Write(probe.frame(sender, broadcastMAC)); err != nil {
			return nil, fmt.Errorf("probe %s: send: %w", q.IP, err)
		}
		holder, err := await(ctx, link, func(p arpPacket) bool {
			return p.senderMAC != owner && p.senderMAC != sender &&
				(p.sender == q.IP || p.isProbe() && p.target == q.IP)
		})
		if err != nil {
			return nil, fmt.Errorf("probe %s: %w", q.IP, err)
		}
		if holder != zeroMAC {
			return holder[:], nil
		}
	}
	return nil, nil
}

// await returns the sender of the first packet that matches within
// probeInterval; none is no error.
func await(ctx context.Context, link Link, match func(arpPacket) bool) (mac, error) {
	if err := link.SetReadDeadline(time.Now().Add(probeInterval)); err != nil {
		return zeroMAC, err
	}
	stop := context.AfterFunc(ctx, func() { _ = link.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 1<<14)
	for {
		n, err := link.Read(buf)
		switch {
		case ctx.Err() != nil:
			return zeroMAC, ctx.Err()
		case errors.Is(err, os.ErrDeadlineExceeded):
			return zeroMAC, nil
		case err != nil:
			return zeroMAC, err
		}
		if p, ok := parseARP(buf[:n]); ok && match(p) {
			return p.senderMAC, nil
		}
	}
}

// Defend answers the probes of other hosts for the addresses of ports until ctx
// ends: between its reservation and its machine's start nobody else would. hw is
// the link's own address; the link, of ListenARP, must not be shared.
func Defend(ctx context.Context, link Link, hw net.HardwareAddr, leases *Leases) error {
	own, err := parseMAC(hw)
	if err != nil {
		return fmt.Errorf("defend addresses: %w", err)
	}
	err = receive(ctx, link, func(frame []byte) {
		p, ok := parseARP(frame)
		if !ok || !p.isProbe() || p.senderMAC == own {
			return
		}
		holder := leases.portOf(p.target)
		if holder == zeroMAC || holder == p.senderMAC {
			return
		}
		reply := arpPacket{op: arpReply, senderMAC: holder, sender: p.target, targetMAC: p.senderMAC, target: p.sender}
		// An answer is lost as any frame may be; the asker asks again.
		_, _ = link.Write(reply.frame(own, p.senderMAC))
	})
	if err != nil {
		return fmt.Errorf("defend addresses: %w", err)
	}
	return nil
}
