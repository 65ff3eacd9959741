package profiles

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// resolveAddresses decides on the addresses of a network whose subnet is
// given. Without one, they are all chosen at launch.
func (n *Network) resolveAddresses(p place, raw rawNetwork) {
	if raw.Subnet == nil {
		for _, key := range []string{"address", "gateway", "pool"} {
			if at := p.at(key); at.exists() && !p.at("subnet").exists() {
				at.faultf("needs the network's subnet")
			}
		}
		return
	}
	subnet, err := parseSubnet(*raw.Subnet)
	if !p.at("subnet").check(err) {
		return
	}
	n.Subnet = subnet
	n.resolveGateway(p.at("gateway"), raw.Gateway)
	n.resolveAddress(p.at("address"), raw.Address)
	if !n.Gateway.IsValid() {
		n.Gateway = n.Address.Addr()
	}
	n.resolvePool(p.at("pool"), raw.Pool)
}

func (n *Network) resolveGateway(p place, raw *string) {
	if raw == nil {
		return
	}
	gateway, err := parseHost(*raw, n.Subnet)
	if p.check(err) {
		n.Gateway = gateway
	}
}

// resolveAddress decides on the host's address. In mode nat the host is the
// router unless the file says otherwise; on a vlan it may be no member at all.
func (n *Network) resolveAddress(p place, raw *string) {
	switch {
	case raw != nil:
		address, err := parseAddress(*raw, n.Subnet)
		if p.check(err) {
			n.Address = address
		}
	case p.exists() || n.Mode == VLAN:
	case n.Mode == NAT && n.Gateway.IsValid():
		n.Address = netip.PrefixFrom(n.Gateway, n.Subnet.Bits())
	default:
		n.Address = netip.PrefixFrom(n.Subnet.Addr().Next(), n.Subnet.Bits())
	}
}

func (n *Network) resolvePool(p place, raw *string) {
	if raw == nil {
		n.PoolFirst, n.PoolLast = n.freeRange()
		return
	}
	first, last, err := parsePool(*raw, n.Subnet)
	if !p.check(err) {
		return
	}
	n.PoolFirst, n.PoolLast = first, last
	for _, taken := range []struct {
		what string
		addr netip.Addr
	}{{"the host's address", n.Address.Addr()}, {"the gateway", n.Gateway}} {
		if taken.addr.IsValid() && !taken.addr.Less(first) && !last.Less(taken.addr) {
			p.faultf("%s holds %s, %v", quote(*raw), taken.what, taken.addr)
			return
		}
	}
}

// freeRange is the longest run of addresses that neither the host nor the
// gateway has. It is invalid if there is none.
func (n *Network) freeRange() (first, last netip.Addr) {
	start, end := number(n.Subnet.Addr()), number(broadcast(n.Subnet))
	ends := []uint32{start, end}
	for _, taken := range []netip.Addr{n.Address.Addr(), n.Gateway} {
		if taken.IsValid() {
			ends = append(ends, number(taken))
		}
	}
	slices.Sort(ends)
	longest := uint32(1)
	for i, e := range ends[1:] {
		if gap := e - ends[i]; gap > longest {
			longest, first, last = gap, fromNumber(ends[i]+1), fromNumber(e-1)
		}
	}
	return first, last
}

// parseSubnet reads a subnet that a network can have.
func parseSubnet(s string) (netip.Prefix, error) {
	subnet, err := parsePrefix(s)
	if err != nil {
		return netip.Prefix{}, err
	}
	addr := subnet.Addr()
	switch {
	case subnet.Bits() > 30:
		return netip.Prefix{}, fmt.Errorf("%v is too small: a host, a guest, and the network and broadcast addresses need a /30", subnet)
	case subnet.Bits() < 8:
		return netip.Prefix{}, fmt.Errorf("%v is too large: at most a /8", subnet)
	case subnet != subnet.Masked():
		return netip.Prefix{}, fmt.Errorf("%v has bits of a host: write %q", subnet, subnet.Masked())
	case addr.As4()[0] == 0 || addr.IsLoopback() || addr.As4()[0] >= 224:
		return netip.Prefix{}, fmt.Errorf("%v is not a range of unicast addresses", subnet)
	}
	return subnet, nil
}

func parsePrefix(s string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(s); err == nil && addr.Is4() {
		return netip.Prefix{}, fmt.Errorf("%s lacks a prefix length: write it as %q", quote(s), s+"/24")
	}
	prefix, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return netip.Prefix{}, fmt.Errorf("%s is not an address with a prefix length, such as \"10.70.0.0/24\"", quote(s))
	case !prefix.Addr().Is4():
		return netip.Prefix{}, errors.New("IPv6 is not supported yet")
	}
	return prefix, nil
}

// parseAddress reads the host's address, which repeats the subnet's length.
func parseAddress(s string, subnet netip.Prefix) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(s); err == nil && addr.Is4() {
		return netip.Prefix{}, fmt.Errorf("%s lacks a prefix length: write %q", quote(s), fmt.Sprintf("%s/%d", s, subnet.Bits()))
	}
	address, err := parsePrefix(s)
	if err != nil {
		return netip.Prefix{}, err
	}
	if err := checkHost(address.Addr(), subnet); err != nil {
		return netip.Prefix{}, err
	}
	if address.Bits() != subnet.Bits() {
		return netip.Prefix{}, fmt.Errorf("%v is not of the length of subnet %v", address, subnet)
	}
	return address, nil
}

// parseHost reads an address of a machine in the subnet.
func parseHost(s string, subnet netip.Prefix) (netip.Addr, error) {
	addr, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return netip.Addr{}, fmt.Errorf("%s is not an IP address", quote(s))
	case !addr.Is4():
		return netip.Addr{}, errors.New("IPv6 is not supported yet")
	}
	return addr, checkHost(addr, subnet)
}

func checkHost(addr netip.Addr, subnet netip.Prefix) error {
	switch {
	case !subnet.Contains(addr):
		return fmt.Errorf("%v is outside subnet %v", addr, subnet)
	case addr == subnet.Addr():
		return fmt.Errorf("%v is the network address of %v", addr, subnet)
	case addr == broadcast(subnet):
		return fmt.Errorf("%v is the broadcast address of %v", addr, subnet)
	}
	return nil
}

// parsePool reads "first-last".
func parsePool(s string, subnet netip.Prefix) (first, last netip.Addr, err error) {
	left, right, found := strings.Cut(s, "-")
	if !found {
		return first, last, fmt.Errorf("%s is not a range: write the first and the last address with a hyphen between them", quote(s))
	}
	if first, err = parseHost(strings.TrimSpace(left), subnet); err != nil {
		return first, last, err
	}
	if last, err = parseHost(strings.TrimSpace(right), subnet); err != nil {
		return first, last, err
	}
	if last.Less(first) {
		return first, last, fmt.Errorf("%v comes after %v", first, last)
	}
	return first, last, nil
}

// broadcast is the last address of an IPv4 subnet.
func broadcast(subnet netip.Prefix) netip.Addr {
	return fromNumber(number(subnet.Addr()) | (1<<(32-subnet.Bits()) - 1))
}

func number(addr netip.Addr) uint32 {
	b := addr.As4()
	return binary.BigEndian.Uint32(b[:])
}

func fromNumber(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}
