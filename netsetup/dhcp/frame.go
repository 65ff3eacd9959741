package dhcp

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
)

const (
	serverPort = 67
	clientPort = 68

	etherTypeIPv4 = 0x0800
	etherTypeARP  = 0x0806
	protocolUDP   = 17

	etherLen = 14
	ipv4Len  = 20 // without IP options
	udpLen   = 8
)

// mac is an Ethernet address that can be a map's key.
type mac [6]byte

var (
	zeroMAC      mac
	broadcastMAC = mac{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
)

func parseMAC(hw net.HardwareAddr) (mac, error) {
	if len(hw) != len(mac{}) {
		return mac{}, fmt.Errorf("%q is not an Ethernet address", hw)
	}
	return mac(hw), nil
}

func (m mac) String() string { return net.HardwareAddr(m[:]).String() }

func (m mac) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

func (m *mac) UnmarshalText(text []byte) error {
	hw, err := net.ParseMAC(string(text))
	if err != nil {
		return err
	}
	*m, err = parseMAC(hw)
	return err
}

// unicast tells an address that one machine can have.
func (m mac) unicast() bool { return m[0]&1 == 0 && m != zeroMAC }

// datagram is a UDP datagram with everything below it.
type datagram struct {
	srcMAC, dstMAC   mac
	src, dst         netip.Addr
	srcPort, dstPort uint16
	payload          []byte
}

// parseFrame takes an Ethernet frame apart that carries a whole UDP datagram to
// a DHCP server. The payload is part of the frame's memory. All that is tagged,
// fragmented, cut short or damaged is not ok.
func parseFrame(frame []byte) (d datagram, ok bool) {
	if len(frame) < etherLen+ipv4Len || binary.BigEndian.Uint16(frame[12:]) != etherTypeIPv4 {
		return d, false
	}
	d.dstMAC, d.srcMAC = mac(frame[0:6]), mac(frame[6:12])
	ip := frame[etherLen:]
	header, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
	if ip[0]>>4 != 4 || header < ipv4Len || total < header+udpLen || total > len(ip) {
		return d, false
	}
	const moreFragmentsOrOffset = 0x3fff
	if binary.BigEndian.Uint16(ip[6:])&moreFragmentsOrOffset != 0 || ip[9] != protocolUDP || fold(sum(0, ip[:header])) != 0xffff {
		return d, false
	}
	d.src, d.dst = netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:]))
	return d, d.parseUDP(ip[header:total])
}

func (d *datagram) parseUDP(udp []byte) (ok bool) {
	length := int(binary.BigEndian.Uint16(udp[4:]))
	if length < udpLen || length > len(udp) {
		return false
	}
	udp = udp[:length]
	d.srcPort, d.dstPort = binary.BigEndian.Uint16(udp[0:]), binary.BigEndian.Uint16(udp[2:])
	d.payload = udp[udpLen:]
	return d.dstPort == serverPort && d.checksumOK(udp)
}

// checksumOK also takes the checksum that a sender left to its network card: a
// guest's own kernel does so when it renews, and no card of ours fills it in.
// The field then holds the pseudo header's sum (Linux, skbuff.h,
// CHECKSUM_PARTIAL).
func (d *datagram) checksumOK(udp []byte) bool {
	field := binary.BigEndian.Uint16(udp[6:])
	pseudo := d.pseudoSum(len(udp))
	return field == 0 || fold(sum(pseudo, udp)) == 0xffff || field == fold(pseudo)
}

// appendFrame appends the frame that carries d.
func appendFrame(b []byte, d datagram) []byte {
	b = append(b, d.dstMAC[:]...)
	b = append(b, d.srcMAC[:]...)
	b = binary.BigEndian.AppendUint16(b, etherTypeIPv4)

	ip, length := len(b), udpLen+len(d.payload)
	b = append(b, 4<<4|ipv4Len/4, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(ipv4Len+length))
	b = append(b, 0, 0, 0x40, 0, 64, protocolUDP, 0, 0) // don't fragment, TTL 64
	b = append(b, d.src.AsSlice()...)
	b = append(b, d.dst.AsSlice()...)
	binary.BigEndian.PutUint16(b[ip+10:], ^fold(sum(0, b[ip:])))

	udp := len(b)
	b = binary.BigEndian.AppendUint16(b, d.srcPort)
	b = binary.BigEndian.AppendUint16(b, d.dstPort)
	b = binary.BigEndian.AppendUint16(b, uint16(length))
	b = append(b, 0, 0)
	b = append(b, d.payload...)
	checksum := ^fold(sum(d.pseudoSum(length), b[udp:]))
	if checksum == 0 { // RFC 768: zero means that there is none
		checksum = 0xffff
	}
	binary.BigEndian.PutUint16(b[udp+6:], checksum)
	return b
}

func (d *datagram) pseudoSum(udpLength int) uint32 {
	s := sum(0, d.src.AsSlice())
	s = sum(s, d.dst.AsSlice())
	return s + protocolUDP + uint32(udpLength)
}

// sum adds the 16-bit words of b; fold makes the checksum of RFC 1071 from it.
func sum(s uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	return s
}

func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
