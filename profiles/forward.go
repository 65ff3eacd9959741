package profiles

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// ParseForward reads docker's grammar, [addr:]host:guest[/proto]: "8080:80",
// "0.0.0.0:53:53/udp", "[::1]:8080:80/tcp". Unlike docker's, the default
// address is 127.0.0.1, and there are no ranges and no ports left open.
func ParseForward(s string) (Forward, error) {
	f := Forward{HostAddr: netip.AddrFrom4([4]byte{127, 0, 0, 1}), Proto: "tcp"}
	rest, proto, found := strings.Cut(s, "/")
	if found {
		f.Proto = proto
	}
	if f.Proto != "tcp" && f.Proto != "udp" {
		return Forward{}, fmt.Errorf("%s has the protocol %s: tcp and udp are known", quote(s), quote(proto))
	}
	rest, guest, found := cutLast(rest, ":")
	if !found {
		return Forward{}, fmt.Errorf("%s is not [addr:]host:guest[/udp], such as \"8080:80\"", quote(s))
	}
	addr, host, found := cutLast(rest, ":")
	if !found {
		host = rest
	}
	var err error
	if found {
		if f.HostAddr, err = parseListen(addr); err != nil {
			return Forward{}, fmt.Errorf("%s: %w", quote(s), err)
		}
	}
	if f.HostPort, err = parsePort(host); err != nil {
		return Forward{}, fmt.Errorf("%s: host's port: %w", quote(s), err)
	}
	if f.GuestPort, err = parsePort(guest); err != nil {
		return Forward{}, fmt.Errorf("%s: guest's port: %w", quote(s), err)
	}
	return f, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

func parsePort(s string) (uint16, error) {
	if strings.Contains(s, "-") {
		return 0, errors.New("a range is not supported: write one forward for each port")
	}
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%s is not a port: 1 to 65535", quote(s))
	}
	return uint16(n), nil
}

// parseListen reads an address to listen on. IPv6 stands in brackets.
func parseListen(s string) (netip.Addr, error) {
	inner, bracketed := strings.CutPrefix(s, "[")
	if bracketed {
		if inner, bracketed = strings.CutSuffix(inner, "]"); !bracketed {
			return netip.Addr{}, errors.New("a bracket is missing")
		}
	}
	addr, err := netip.ParseAddr(inner)
	switch {
	case err != nil:
		return netip.Addr{}, fmt.Errorf("%s is not an IP address: write \"127.0.0.1\", or \"0.0.0.0\" for all", quote(inner))
	case addr.Is6() != bracketed:
		return netip.Addr{}, fmt.Errorf("%s: brackets are for IPv6 addresses, and they need them", quote(inner))
	case addr.Zone() != "":
		return netip.Addr{}, fmt.Errorf("%s: zones are not supported", quote(inner))
	}
	return addr, nil
}

// String gives the forward in full. ParseForward reads it back as the same.
func (f Forward) String() string {
	return fmt.Sprintf("%v:%d/%s", netip.AddrPortFrom(f.HostAddr, f.HostPort), f.GuestPort, f.Proto)
}

// resolveForwards keeps the indexes of the file: one at fault is zero.
func resolveForwards(p place, raw []string) []Forward {
	if len(raw) == 0 {
		return nil
	}
	forwards := make([]Forward, len(raw))
	for i, s := range raw {
		if p.item(i).node.kind != kindString {
			continue
		}
		f, err := ParseForward(s)
		p.item(i).check(err)
		forwards[i] = f
	}
	return forwards
}

// checkUserForwards finds what QEMU's hostfwd can't do.
func checkUserForwards(p place, forwards []Forward) {
	for i, f := range forwards {
		if f.HostAddr.Is6() {
			p.item(i).faultf("QEMU's user network listens on IPv4 addresses only")
		}
	}
}

// checkPorts finds ports of the host that two forwards want.
func checkPorts(p place, nics []NIC) {
	type port struct {
		number uint16
		proto  string
	}
	type holder struct {
		key  string
		addr netip.Addr
	}
	held := make(map[port][]holder)
	for i, nic := range nics {
		for j, f := range nic.Forward {
			if f.HostPort == 0 { // at fault, and told
				continue
			}
			at := p.item(i).at("forward").item(j)
			key := port{f.HostPort, f.Proto}
			for _, h := range held[key] {
				if h.addr == f.HostAddr || h.addr.IsUnspecified() || f.HostAddr.IsUnspecified() {
					at.faultf("%s has %s port %d already", h.key, f.Proto, f.HostPort)
					break
				}
			}
			held[key] = append(held[key], holder{at.key, f.HostAddr})
		}
	}
}
