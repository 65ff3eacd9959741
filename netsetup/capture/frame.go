package capture

import (
	"encoding/binary"
	"net/netip"
)

// frame is what a filter looks at. The zero value of a field says that the frame
// has no such thing, but for the protocol, which counts only with an address.
type frame struct {
	length      int
	destination [6]byte
	source      [6]byte
	tagged      bool
	vlan        int    // of the outermost tag
	kind        uint16 // EtherType behind all tags
	from, to    netip.Addr
	protocol    uint8 // of IP
	ports       bool  // both are there
	fromPort    uint16
	toPort      uint16
}

const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherRARP = 0x8035
	etherIPv6 = 0x86dd
	etherQ    = 0x8100 // 802.1Q
	etherAD   = 0x88a8 // 802.1ad
	etherQinQ = 0x9100 // before 802.1ad

	protocolICMP   = 1
	protocolIGMP   = 2
	protocolTCP    = 6
	protocolUDP    = 17
	protocolICMPv6 = 58
	protocolSCTP   = 132
)

// parseFrame reads as much of a frame as is there.
func parseFrame(p Packet) frame {
	f := frame{length: p.Length}
	b := p.Data
	if len(b) < etherLen {
		return f
	}
	copy(f.destination[:], b)
	copy(f.source[:], b[6:])
	f.kind, b = binary.BigEndian.Uint16(b[12:]), b[etherLen:]
	for (f.kind == etherQ || f.kind == etherAD || f.kind == etherQinQ) && len(b) >= tagLen {
		if !f.tagged {
			f.tagged, f.vlan = true, int(binary.BigEndian.Uint16(b)&0xfff)
		}
		f.kind, b = binary.BigEndian.Uint16(b[2:]), b[tagLen:]
	}
	switch f.kind {
	case etherIPv4:
		f.parseIPv4(b)
	case etherIPv6:
		f.parseIPv6(b)
	case etherARP, etherRARP:
		f.parseARP(b)
	}
	return f
}

// parseIPv4 reads a header of RFC 791. Only the first fragment has ports.
func (f *frame) parseIPv4(b []byte) {
	const minimum = 20
	if len(b) < minimum {
		return
	}
	f.from, f.to = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	f.protocol = b[9]
	offset := binary.BigEndian.Uint16(b[6:]) & 0x1fff
	if header := int(b[0]&0xf) * 4; offset == 0 && header >= minimum && header <= len(b) {
		f.parsePorts(b[header:])
	}
}

// parseIPv6 reads a header of RFC 8200 and walks over its extensions.
func (f *frame) parseIPv6(b []byte) {
	const header = 40
	if len(b) < header {
		return
	}
	f.from, f.to = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
	f.protocol, b = b[6], b[header:]
	for {
		var length int
		switch f.protocol {
		case 0, 43, 60: // hop-by-hop, routing, destination options
			if len(b) < 8 {
				return
			}
			length = 8 + 8*int(b[1])
		case 44: // fragment
			if len(b) < 8 {
				return
			}
			if binary.BigEndian.Uint16(b[2:])>>3 != 0 {
				f.protocol = b[0]
				return
			}
			length = 8
		default:
			f.parsePorts(b)
			return
		}
		if len(b) < length {
			return
		}
		f.protocol, b = b[0], b[length:]
	}
}

// parseARP reads the protocol addresses of RFC 826, where they are of IPv4.
func (f *frame) parseARP(b []byte) {
	const length = 28
	if len(b) < length || binary.BigEndian.Uint16(b[2:]) != etherIPv4 || b[4] != 6 || b[5] != 4 {
		return
	}
	f.from, f.to = netip.AddrFrom4([4]byte(b[14:])), netip.AddrFrom4([4]byte(b[24:]))
}

func (f *frame) parsePorts(b []byte) {
	switch f.protocol {
	case protocolTCP, protocolUDP, protocolSCTP:
		if len(b) >= 4 {
			f.ports, f.fromPort, f.toPort = true, binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
		}
	}
}
