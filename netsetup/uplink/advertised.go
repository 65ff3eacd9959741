package uplink

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A default route that a router has advertised is the kernel's own, which flags
// it in a way that rtnetlink neither shows nor takes. Where there is one without
// the flags, the kernel fails to add its own and stops reading the advertisement
// (ndisc_router_discovery in net/ipv6/ndisc.c): addresses would not be prolonged
// any more. The old ioctl takes flags, and /proc shows them.

// flags of linux/ipv6_route.h and linux/route.h.
const (
	rtfUp       = 0x1
	rtfGateway  = 0x2
	rtfDefault  = 0x00010000
	rtfAddrconf = 0x00040000
	rtfExpires  = 0x00400000
	prefShift   = 27

	rtfAdvertised = rtfDefault | rtfAddrconf
)

// advertisedMetric is the kernel's for its own. One of another metric is replaced
// by that at the next advertisement.
const advertisedMetric = 1024 // IP6_RT_PRIO_USER, ra_defrtr_metric

// isAdvertised tells whether a default route is one that the kernel has from a
// router, or one that was put in its place and waits for its next advertisement.
func (p parsed) isAdvertised(name string) (bool, error) {
	if p.Family != unix.AF_INET6 || p.dst.Bits() != 0 || p.table != unix.RT_TABLE_MAIN || len(p.gateways) != 1 {
		return false, nil
	}
	text, err := os.ReadFile("/proc/net/ipv6_route")
	if err != nil {
		return false, fmt.Errorf("read flags of routes: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line) // to, length, from, length, gateway, metric, …, flags, interface
		if len(words) < 10 || words[1] != "00" || words[9] != name || words[4] != hex.EncodeToString(p.gateways[0].AsSlice()) {
			continue
		}
		flags, err := strconv.ParseUint(words[8], 16, 32)
		if err == nil && flags&rtfAdvertised == rtfAdvertised {
			return true, nil
		}
	}
	return false, nil
}

// advertised is the route's message as the kernel's own would be.
func (p parsed) advertised() parsed {
	p.Protocol = unix.RTPROT_RA
	for i, a := range p.attrs {
		if kind(a) == unix.RTA_PRIORITY {
			p.attrs[i].Value = binary.NativeEndian.AppendUint32(nil, advertisedMetric)
			p.metric = advertisedMetric
		}
	}
	return p
}

// router is the route to one router, which is what is advertised.
func (r Route) router() (parsed, error) {
	p, err := r.parse()
	if err == nil && (len(p.gateways) != 1 || !p.gateways[0].Is6()) {
		return p, fmt.Errorf("route %s is not one to a router", r)
	}
	return p, err
}

// in6RtMsg is struct in6_rtmsg of linux/ipv6_route.h.
type in6RtMsg struct {
	Dst, Src, Gateway [16]byte
	Type              uint32
	DstLen, SrcLen    uint16
	Metric            uint32
	_                 uint32
	Info              uint64 // until it expires, in hundredths of a second
	Flags             uint32
	Index             int32
}

// putAdvertised adds a default route as if a router had advertised it, until one
// does.
func putAdvertised(name string, index int, r Route) error {
	now, err := readRoutes(name, uint32(index))
	if err != nil {
		return err
	}
	if (State{Routes: now}).HasRoute(r) {
		return nil
	}
	p, err := r.router()
	if err != nil {
		return err
	}
	message := in6RtMsg{Gateway: p.gateways[0].As16(), Metric: advertisedMetric + 1, Index: int32(index),
		Flags: rtfUp | rtfGateway | rtfAdvertised | uint32(p.preference)<<prefShift}
	if r.Expires > 0 {
		message.Info, message.Flags = uint64(r.Expires)*100, message.Flags|rtfExpires
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCADDRT, uintptr(unsafe.Pointer(&message))); errno != 0 && errno != unix.EEXIST {
		return errno
	}
	return nil
}

// placeholder is the route that putAdvertised makes, as rtnetlink knows it.
func (r Route) placeholder(index uint32) ([]byte, error) {
	p, err := r.router()
	if err != nil {
		return nil, err
	}
	header := unix.RtMsg{Family: unix.AF_INET6, Table: unix.RT_TABLE_MAIN, Scope: unix.RT_SCOPE_NOWHERE}
	b := appendAttr(encode(header), unix.RTA_GATEWAY, p.gateways[0].AsSlice())
	b = appendAttr(b, unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, index))
	return appendAttr(b, unix.RTA_PRIORITY, binary.NativeEndian.AppendUint32(nil, advertisedMetric+1)), nil
}

// Solicit asks the routers of a link to advertise themselves (RFC 4861, 6.3.7), as
// the kernel does when a link comes up.
func Solicit(index int) (err error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
	if err != nil {
		return fmt.Errorf("solicit routers: %w", err)
	}
	defer unix.Close(fd)
	const solicitation = 133
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, index),
	)
	if err == nil {
		allRouters := netip.MustParseAddr("ff02::2").As16()
		// Type, code, checksum (the kernel's to fill in), reserved.
		err = unix.Sendto(fd, []byte{solicitation, 0, 0, 0, 0, 0, 0, 0}, 0, &unix.SockaddrInet6{Addr: allRouters, ZoneId: uint32(index)})
	}
	if err != nil {
		return fmt.Errorf("solicit routers: %w", err)
	}
	return nil
}
