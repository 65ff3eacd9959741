package dhcp

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// Pool is the part of a subnet that is given out.
type Pool struct {
	Subnet      netip.Prefix // IPv4, between /8 and /30
	First, Last netip.Addr   // both included
	Exclude     []netip.Addr // in the pool or not, never given: the host's, the router's
}

func (p Pool) check() error {
	switch {
	case !p.Subnet.IsValid() || !p.Subnet.Addr().Is4() || p.Subnet.Bits() < 8 || p.Subnet.Bits() > 30:
		return fmt.Errorf("subnet %s: not an IPv4 subnet between /8 and /30", p.Subnet)
	case p.Subnet != p.Subnet.Masked():
		return fmt.Errorf("subnet %s: address bits set beyond the mask", p.Subnet)
	case !p.Subnet.Contains(p.First) || !p.Subnet.Contains(p.Last):
		return fmt.Errorf("pool %s-%s: outside the subnet %s", p.First, p.Last, p.Subnet)
	case p.Last.Less(p.First):
		return fmt.Errorf("pool %s-%s: ends before it begins", p.First, p.Last)
	case p.First == p.Subnet.Addr() || p.Last == p.broadcast():
		return fmt.Errorf("pool %s-%s: takes in the network's or the broadcast address", p.First, p.Last)
	}
	return nil
}

// Preferred is the address that a MAC gets where it is free: derived from the
// MAC, the same on each host. It is the zero Addr if the whole pool is excluded.
func (p Pool) Preferred(hw net.HardwareAddr) netip.Addr {
	sum := sha256.Sum256(hw)
	start := binary.BigEndian.Uint32(sum[:]) % p.size()
	for i := range p.size() {
		if ip := p.at(start + i); !slices.Contains(p.Exclude, ip) {
			return ip
		}
	}
	return netip.Addr{}
}

// size is the number of addresses from First to Last.
func (p Pool) size() uint32 { return number(p.Last) - number(p.First) + 1 }

// at is the pool's i-th address, counted round and round.
func (p Pool) at(i uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], number(p.First)+i%p.size())
	return netip.AddrFrom4(b)
}

// index is at's inverse.
func (p Pool) index(ip netip.Addr) uint32 { return number(ip) - number(p.First) }

// has tells an address that may be given to anybody.
func (p Pool) has(ip netip.Addr) bool {
	return ip.Is4() && !ip.Less(p.First) && !p.Last.Less(ip) && !slices.Contains(p.Exclude, ip)
}

// assignable tells an address that a machine of the subnet may have.
func (p Pool) assignable(ip netip.Addr) bool {
	return p.Subnet.Contains(ip) && ip != p.Subnet.Addr() && ip != p.broadcast() && !slices.Contains(p.Exclude, ip)
}

func (p Pool) broadcast() netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], number(p.Subnet.Addr())|^uint32(0)>>p.Subnet.Bits())
	return netip.AddrFrom4(b)
}

func number(ip netip.Addr) uint32 {
	b := ip.As4()
	return binary.BigEndian.Uint32(b[:])
}
