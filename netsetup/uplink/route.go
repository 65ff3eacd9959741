package uplink

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Route is a route through an interface. It is kept as the kernel's own message,
// so that no attribute is lost; the index of the interface itself is written as
// 0, which no interface has.
type Route struct {
	Text    string `json:"text"`
	Raw     []byte `json:"raw"`               // struct rtmsg and its attributes
	Expires uint32 `json:"expires,omitempty"` // seconds left when it was read; 0: it stays

	// Advertised: a router has told the kernel of it.
	Advertised bool `json:"advertised,omitempty"`
}

// Same tells whether two are one route, whatever their lifetimes.
func (r Route) Same(o Route) bool { return bytes.Equal(r.Raw, o.Raw) }

// String is the route as ip(8) writes it, without its interface.
func (r Route) String() string { return r.Text }

// nexthopSize is that of struct rtnexthop of linux/rtnetlink.h.
const nexthopSize = 8

// parsed is what has to be known of a route.
type parsed struct {
	unix.RtMsg
	dst        netip.Prefix
	table      uint32
	metric     uint32
	oif        uint32 // 0: the interface itself, or none
	hasOIF     bool
	source     netip.Addr
	gateways   []netip.Addr
	hops       []uint32 // the interfaces of a multipath route
	preference uint8    // of the router, IPv6
	attrs      []attribute
}

func parseRoute(message []byte) (p parsed, err error) {
	if len(message) < unix.SizeofRtMsg {
		return p, fmt.Errorf("parse route: %d bytes", len(message))
	}
	if err := binary.Read(bytes.NewReader(message), binary.NativeEndian, &p.RtMsg); err != nil {
		return p, fmt.Errorf("parse route: %w", err)
	}
	if p.attrs, err = parseAttrs(message[unix.SizeofRtMsg:]); err != nil {
		return p, fmt.Errorf("parse route: %w", err)
	}
	everywhere := netip.IPv4Unspecified()
	if p.Family == unix.AF_INET6 {
		everywhere = netip.IPv6Unspecified()
	}
	p.dst, p.table = netip.PrefixFrom(everywhere, int(p.Dst_len)), uint32(p.Table)
	for _, a := range p.attrs {
		p.take(a)
	}
	return p, nil
}

func (p *parsed) take(a attribute) {
	switch kind(a) {
	case unix.RTA_DST:
		p.dst = netip.PrefixFrom(addr(a.Value), int(p.Dst_len))
	case unix.RTA_TABLE:
		p.table = number(a.Value)
	case unix.RTA_PRIORITY:
		p.metric = number(a.Value)
	case unix.RTA_PREFSRC:
		p.source = addr(a.Value)
	case unix.RTA_OIF:
		p.oif, p.hasOIF = number(a.Value), true
	case unix.RTA_GATEWAY:
		p.gateways = append(p.gateways, addr(a.Value))
	case unix.RTA_PREF:
		p.preference = octet(a.Value)
	case unix.RTA_VIA: // struct rtvia: a gateway of the other family
		if len(a.Value) > 2 {
			p.gateways = append(p.gateways, addr(a.Value[2:]))
		}
	case unix.RTA_MULTIPATH:
		for hop := range hopsOf(a.Value) {
			p.hops = append(p.hops, binary.NativeEndian.Uint32(hop[4:]))
			nested, err := parseAttrs(hop[nexthopSize:])
			if err != nil {
				continue
			}
			for _, n := range nested {
				if kind(n) == unix.RTA_GATEWAY || kind(n) == unix.RTA_VIA {
					p.take(n)
				}
			}
		}
	}
}

// hopsOf goes through the next hops of a multipath attribute, each a struct
// rtnexthop with its attributes, aligned to 4 bytes.
func hopsOf(b []byte) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(b) >= nexthopSize {
			size := int(binary.NativeEndian.Uint16(b))
			if size < nexthopSize || size > len(b) || !yield(b[:size]) {
				return
			}
			b = b[min(len(b), (size+3)&^3):]
		}
	}
}

func (r Route) parse() (parsed, error) { return parseRoute(r.Raw) }

// gatewayless tells routes that others need to reach their gateways.
func (r Route) gatewayless() bool {
	p, err := r.parse()
	return err == nil && len(p.gateways) == 0
}

// fromKernel tells a route that comes and goes with an address.
func (r Route) fromKernel() bool {
	p, err := r.parse()
	return err == nil && p.Protocol == unix.RTPROT_KERNEL
}

// through tells whether the route leads through an interface.
func (p parsed) through(index uint32) bool {
	return p.hasOIF && p.oif == index || slices.Contains(p.hops, index)
}

// automatic tells routes that the kernel makes for each address or interface,
// and that can't be set: those of the table "local", and the IPv6 ones to
// link-local addresses.
func (p parsed) automatic() bool {
	switch {
	case p.Flags&unix.RTM_F_CLONED != 0:
		return true
	case p.Protocol != unix.RTPROT_KERNEL:
		return false
	}
	a := p.dst.Addr()
	return p.table == unix.RT_TABLE_LOCAL || p.Family == unix.AF_INET6 && (a.IsLinkLocalUnicast() || a.IsMulticast())
}

// neutral is a message without what the kernel alone may set, and with 0 for the
// interface's index.
func (p parsed) neutral(index uint32) []byte {
	header := p.RtMsg
	header.Flags &= unix.RTNH_F_ONLINK | unix.RTNH_F_PERVASIVE
	b := encode(header)
	for _, a := range p.attrs {
		switch kind(a) {
		case unix.RTA_CACHEINFO, unix.RTA_MFC_STATS, unix.RTA_EXPIRES, unix.RTA_PAD:
		case unix.RTA_OIF:
			b = appendAttr(b, unix.RTA_OIF, nl.Uint32Attr(swapped(p.oif, index, 0)))
		case unix.RTA_MULTIPATH:
			b = appendAttr(b, a.Type, withIndex(a.Value, index, 0))
		default:
			b = appendAttr(b, a.Type, a.Value)
		}
	}
	return b
}

// on is the message for an interface.
func (r Route) on(index uint32) ([]byte, error) {
	p, err := r.parse()
	if err != nil {
		return nil, err
	}
	b := encode(p.RtMsg)
	for _, a := range p.attrs {
		switch kind(a) {
		case unix.RTA_OIF:
			b = appendAttr(b, unix.RTA_OIF, nl.Uint32Attr(swapped(p.oif, 0, index)))
		case unix.RTA_MULTIPATH:
			b = appendAttr(b, a.Type, withIndex(a.Value, 0, index))
		default:
			b = appendAttr(b, a.Type, a.Value)
		}
	}
	if r.Expires > 0 {
		b = appendAttr(b, unix.RTA_EXPIRES, nl.Uint32Attr(r.Expires))
	}
	return b, nil
}

func swapped(v, from, to uint32) uint32 {
	if v == from {
		return to
	}
	return v
}

// withIndex copies next hops, replacing an interface's index; states of the
// link, which only the kernel sets, are left out.
func withIndex(hops []byte, from, to uint32) []byte {
	out := slices.Clone(hops)
	for hop := range hopsOf(out) {
		hop[2] &= unix.RTNH_F_ONLINK | unix.RTNH_F_PERVASIVE
		binary.NativeEndian.PutUint32(hop[4:], swapped(binary.NativeEndian.Uint32(hop[4:]), from, to))
	}
	return out
}

// newRoutes reads a route of an interface. The next hops of IPv6 are routes of
// their own to the kernel, which shows them as one: they are taken apart, so that
// those of other interfaces are never touched.
func newRoutes(message []byte, name string, index uint32) ([]Route, error) {
	p, err := parseRoute(message)
	if err != nil {
		return nil, err
	}
	if p.automatic() || !p.through(index) {
		return nil, nil
	}
	if p.Family != unix.AF_INET6 || len(p.hops) == 0 {
		r, err := p.route(name, index)
		return []Route{r}, err
	}
	i := slices.IndexFunc(p.attrs, func(a attribute) bool { return kind(a) == unix.RTA_MULTIPATH })
	var all []Route
	for hop := range hopsOf(p.attrs[i].Value) {
		if binary.NativeEndian.Uint32(hop[4:]) != index {
			continue
		}
		single, err := parseRoute(p.single(i, hop))
		if err != nil {
			return nil, err
		}
		r, err := single.route(name, index)
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}

// single is the message of a route with one of its next hops. One that weighs
// more than others (rtnh_hops is the weight less 1) stays a list.
func (p parsed) single(multipath int, hop []byte) []byte {
	header := p.RtMsg
	if hop[3] == 0 {
		header.Flags |= uint32(hop[2] & unix.RTNH_F_ONLINK)
	}
	b := encode(header)
	for i, a := range p.attrs {
		switch {
		case i != multipath:
			b = appendAttr(b, a.Type, a.Value)
		case hop[3] > 0:
			b = appendAttr(b, unix.RTA_MULTIPATH, hop)
		default:
			b = appendAttr(append(b, hop[nexthopSize:]...), unix.RTA_OIF, hop[4:8])
		}
	}
	return b
}

func (p parsed) route(name string, index uint32) (Route, error) {
	advertised, err := p.isAdvertised(name)
	if err != nil {
		return Route{}, err
	}
	if advertised {
		p = p.advertised()
	}
	r := Route{Raw: p.neutral(index), Text: p.text(), Advertised: advertised}
	for _, a := range p.attrs {
		// struct rta_cacheinfo: rta_expires is its third, in hundredths.
		if kind(a) == unix.RTA_CACHEINFO && len(a.Value) >= 12 {
			if left := int32(binary.NativeEndian.Uint32(a.Value[8:])); left > 0 {
				r.Expires = max(uint32(left)/100, 1)
			}
		}
	}
	return r, nil
}

var routeTypes = map[uint8]string{unix.RTN_LOCAL: "local ", unix.RTN_BROADCAST: "broadcast ", unix.RTN_ANYCAST: "anycast ",
	unix.RTN_MULTICAST: "multicast ", unix.RTN_NAT: "nat "}

func (p parsed) text() string {
	var b strings.Builder
	b.WriteString(routeTypes[p.Type])
	if p.dst.Bits() == 0 {
		b.WriteString("default")
		if p.Family == unix.AF_INET6 {
			b.WriteString(" (IPv6)")
		}
	} else {
		b.WriteString(p.dst.String())
	}
	for i, g := range p.gateways {
		fmt.Fprintf(&b, "%s %s", [2]string{" via", ","}[min(i, 1)], g)
	}
	if p.source.IsValid() {
		fmt.Fprintf(&b, " src %s", p.source)
	}
	if p.metric != 0 {
		fmt.Fprintf(&b, " metric %d", p.metric)
	}
	if p.table != unix.RT_TABLE_MAIN {
		fmt.Fprintf(&b, " table %d", p.table)
	}
	return b.String()
}
