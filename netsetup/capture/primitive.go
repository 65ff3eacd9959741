package capture

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// A primitive asks one thing of a frame: "tcp src port 80" has the protocol
// tcp, the direction src, the kind port and the value 80.
type primitive struct {
	protocol  string // "": any
	direction string // src, dst, or "": either
	kind      string // host, net, port, portrange
}

// protocols are the primitives that consist of a protocol alone.
var protocols = map[string]condition{
	"ether": func(frame) bool { return true },
	"arp":   func(f frame) bool { return f.kind == etherARP },
	"rarp":  func(f frame) bool { return f.kind == etherRARP },
	"ip":    func(f frame) bool { return f.kind == etherIPv4 },
	"ip6":   func(f frame) bool { return f.kind == etherIPv6 },
	"icmp":  carries(etherIPv4, protocolICMP),
	"icmp6": carries(etherIPv6, protocolICMPv6),
	"igmp":  carries(etherIPv4, protocolIGMP),
	"tcp":   func(f frame) bool { return f.isIP() && f.protocol == protocolTCP },
	"udp":   func(f frame) bool { return f.isIP() && f.protocol == protocolUDP },
	"sctp":  func(f frame) bool { return f.isIP() && f.protocol == protocolSCTP },
}

func carries(kind uint16, protocol uint8) condition {
	return func(f frame) bool { return f.kind == kind && f.isIP() && f.protocol == protocol }
}

func (f frame) isIP() bool { return (f.kind == etherIPv4 || f.kind == etherIPv6) && f.from.IsValid() }

// addressed and ported are the protocols that have addresses and ports.
var (
	addressed = []string{"", "ip", "ip6", "arp", "rarp"}
	ported    = []string{"", "tcp", "udp", "sctp"}
)

// primitive reads one.
func (p *parser) primitive() (condition, error) {
	switch word := p.peek(); word {
	case "":
		return nil, errors.New("it ends where a primitive should be")
	case "less", "greater":
		return p.lengthPrimitive(p.next())
	case "vlan":
		p.next()
		return p.vlanPrimitive()
	case "broadcast", "multicast":
		return castPrimitive(p.next()), nil
	}
	var q primitive
	if _, ok := protocols[p.peek()]; ok {
		q.protocol = p.next()
	}
	if word, ok := p.take("broadcast", "multicast"); ok {
		if q.protocol != "ether" {
			return nil, fmt.Errorf("%s %s: only ether takes %s", q.protocol, word, word)
		}
		return castPrimitive(word), nil
	}
	q.direction, _ = p.take("src", "dst")
	q.kind, _ = p.take("host", "net", "port", "portrange")
	if q.kind == "" && q.direction == "" && (q.protocol != "" && !p.addressFollows()) {
		return protocols[q.protocol], nil
	}
	return q.of(p.next())
}

// addressFollows tells whether the next word is an address without its "host".
func (p *parser) addressFollows() bool {
	return strings.ContainsAny(p.peek(), ".:")
}

// of is the condition of a primitive with its value.
func (q primitive) of(value string) (condition, error) {
	if value == "" {
		return nil, fmt.Errorf("it ends where the value of %s should be", q)
	}
	if q.kind == "" {
		q.kind = "host"
		if q.protocol == "" && q.direction == "" && !strings.ContainsAny(value, ".:") {
			return nil, fmt.Errorf("unknown word %q", value)
		}
	}
	switch {
	case q.protocol == "ether":
		return q.ofMAC(value)
	case q.kind == "host" || q.kind == "net":
		return q.ofAddress(value)
	default:
		return q.ofPort(value)
	}
}

func (q primitive) String() string {
	return strings.Join(strings.Fields(q.protocol+" "+q.direction+" "+q.kind), " ")
}

func (q primitive) ofMAC(value string) (condition, error) {
	if q.kind != "host" {
		return nil, fmt.Errorf("%s %s: ether takes a MAC address", q, value)
	}
	mac, err := net.ParseMAC(value)
	if err != nil || len(mac) != 6 {
		return nil, fmt.Errorf("%s %s: want a MAC address as 52:54:00:aa:bb:cc", q, value)
	}
	want := [6]byte(mac)
	return q.either(
		func(f frame) bool { return f.source == want },
		func(f frame) bool { return f.destination == want }), nil
}

// ofAddress is a host's, or a net's.
func (q primitive) ofAddress(value string) (condition, error) {
	if !slices.Contains(addressed, q.protocol) {
		return nil, fmt.Errorf("%s %s: %s has no addresses of its own; write %s and %s %s", q, value, q.protocol, q.protocol,
			primitive{direction: q.direction, kind: q.kind}, value)
	}
	var want netip.Prefix
	var err error
	if q.kind == "net" {
		want, err = netip.ParsePrefix(value)
	} else {
		var addr netip.Addr
		addr, err = netip.ParseAddr(value)
		want = netip.PrefixFrom(addr, addr.BitLen())
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: want an address as 10.70.0.1, or net 10.70.0.0/24", q, value)
	}
	match := q.either(
		func(f frame) bool { return want.Contains(f.from) },
		func(f frame) bool { return want.Contains(f.to) })
	if q.protocol == "" {
		return match, nil
	}
	return join("and", protocols[q.protocol], match), nil
}

// ofPort is a port's, or a range's.
func (q primitive) ofPort(value string) (condition, error) {
	if !slices.Contains(ported, q.protocol) {
		return nil, fmt.Errorf("%s %s: %s has no ports", q, value, q.protocol)
	}
	first, last := value, value
	if q.kind == "portrange" {
		var ok bool
		if first, last, ok = strings.Cut(value, "-"); !ok {
			return nil, fmt.Errorf("%s %s: want a range as 8000-8099", q, value)
		}
	}
	from, err1 := strconv.ParseUint(first, 10, 16)
	to, err2 := strconv.ParseUint(last, 10, 16)
	if err1 != nil || err2 != nil || from > to {
		return nil, fmt.Errorf("%s %s: want numbers from 0 to 65535", q, value)
	}
	within := func(port uint16) bool { return uint64(port) >= from && uint64(port) <= to }
	match := join("and", func(f frame) bool { return f.ports }, q.either(
		func(f frame) bool { return within(f.fromPort) },
		func(f frame) bool { return within(f.toPort) }))
	if q.protocol == "" {
		return match, nil
	}
	return join("and", protocols[q.protocol], match), nil
}

// either is what the direction leaves of a condition on the source and one on
// the destination.
func (q primitive) either(source, destination condition) condition {
	switch q.direction {
	case "src":
		return source
	case "dst":
		return destination
	}
	return join("or", source, destination)
}

func (p *parser) lengthPrimitive(word string) (condition, error) {
	value := p.next()
	n, err := strconv.Atoi(value)
	if err != nil || n < 0 {
		return nil, fmt.Errorf("%s: want a number of bytes, got %s", word, quoted(value))
	}
	if word == "less" {
		return func(f frame) bool { return f.length <= n }, nil
	}
	return func(f frame) bool { return f.length >= n }, nil
}

func (p *parser) vlanPrimitive() (condition, error) {
	n, err := strconv.Atoi(p.peek())
	if err != nil {
		return func(f frame) bool { return f.tagged }, nil
	}
	p.next()
	if n < 0 || n > 4095 {
		return nil, fmt.Errorf("vlan %d: want a number from 0 to 4095", n)
	}
	return func(f frame) bool { return f.tagged && f.vlan == n }, nil
}

func castPrimitive(word string) condition {
	if word == "broadcast" {
		return func(f frame) bool { return f.destination == [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff} }
	}
	return func(f frame) bool { return f.destination[0]&1 == 1 }
}
