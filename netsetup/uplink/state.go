// Package uplink reads what IP has on an interface of the host, and puts it onto
// another one: addresses with their lifetimes, routes of all tables, permanent
// neighbours, policy rules that name the interface. It also tells what stands in
// the way of that, and renews a DHCP lease where the host's client can't.
//
// Everything is written without the interface's own name and index, so that
// what was read of one can be put onto another, and comes back unchanged.
package uplink

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Forever is the lifetime of what has no end, in seconds (RFC 4861, 4.6.2).
const Forever = ^uint32(0)

// State is what IP has on an interface.
type State struct {
	Addresses  []Address   `json:"addresses,omitempty"`  // in the order in which they are to be added
	Routes     []Route     `json:"routes,omitempty"`     // but those that come with the addresses
	Neighbours []Neighbour `json:"neighbours,omitempty"` // permanent ones and proxies
}

// Address is an address with all that rtnetlink(7) knows of it.
type Address struct {
	Prefix    netip.Prefix `json:"prefix"`
	Peer      netip.Addr   `json:"peer,omitzero"` // the other end of a point-to-point link, which the length is of then
	Broadcast netip.Addr   `json:"broadcast,omitzero"`
	Label     string       `json:"label,omitempty"` // "": the interface's name
	Scope     uint8        `json:"scope,omitempty"`
	Flags     uint32       `json:"flags,omitempty"`  // IFA_F_…, as the kernel has them
	Metric    uint32       `json:"metric,omitempty"` // of the route to the subnet; 0: the kernel's
	Origin    uint8        `json:"origin,omitempty"` // IFA_PROTO
	Valid     uint32       `json:"valid"`            // seconds left when it was read, or Forever
	Preferred uint32       `json:"preferred"`        // the same
}

// settableFlags are those that a request may set; the kernel sees to the others.
const settableFlags = unix.IFA_F_NODAD | unix.IFA_F_HOMEADDRESS | unix.IFA_F_MANAGETEMPADDR | unix.IFA_F_NOPREFIXROUTE | unix.IFA_F_MCAUTOJOIN

// Same tells whether two are one address, whatever their lifetimes.
func (a Address) Same(b Address) bool { return a.Prefix == b.Prefix && a.Peer == b.Peer }

// IsLinkLocal tells an IPv6 address that each interface has for itself.
func (a Address) IsLinkLocal() bool {
	return a.Prefix.Addr().Is6() && a.Prefix.Addr().IsLinkLocalUnicast()
}

// Limited tells an address that ends unless somebody prolongs it.
func (a Address) Limited() bool { return a.Valid != Forever }

// IsLease tells an address that a DHCP server has lent.
func (a Address) IsLease() bool { return a.Prefix.Addr().Is4() && a.Limited() }

// String is the address as ip(8) writes it. How long it still lasts is left out.
func (a Address) String() string {
	text := a.Prefix.String()
	if a.Peer.IsValid() {
		text = fmt.Sprintf("%s peer %s/%d", a.Prefix.Addr(), a.Peer, a.Prefix.Bits())
	}
	if a.Label != "" {
		text += " label " + a.Label
	}
	if a.Flags&unix.IFA_F_NOPREFIXROUTE != 0 {
		text += " noprefixroute"
	}
	if a.Limited() {
		text += " of limited lifetime"
	}
	return text
}

// Neighbour is an entry of the neighbour table that never ages.
type Neighbour struct {
	IP     netip.Addr       `json:"ip"`
	MAC    net.HardwareAddr `json:"mac,omitempty"`
	State  uint16           `json:"state,omitempty"` // NUD_…
	Flags  uint8            `json:"flags,omitempty"` // NTF_…
	Origin uint8            `json:"origin,omitempty"`
}

// String is the neighbour as ip(8) writes it.
func (n Neighbour) String() string {
	if n.Flags&unix.NTF_PROXY != 0 {
		return "proxy for " + n.IP.String()
	}
	return fmt.Sprintf("neighbour %s at %s", n.IP, n.MAC)
}

// Later is the state after a time in which nobody prolonged anything.
func (s State) Later(passed time.Duration) State {
	seconds := uint32(max(passed, 0) / time.Second)
	later := State{Neighbours: s.Neighbours}
	for _, a := range s.Addresses {
		a.Preferred = less(a.Preferred, seconds)
		if a.Valid = less(a.Valid, seconds); a.Valid > 0 {
			later.Addresses = append(later.Addresses, a)
		}
	}
	for _, r := range s.Routes {
		had := r.Expires
		if r.Expires > 0 {
			r.Expires = less(r.Expires, seconds)
		}
		if had == 0 || r.Expires > 0 {
			later.Routes = append(later.Routes, r)
		}
	}
	return later
}

func less(lifetime, seconds uint32) uint32 {
	if lifetime == Forever {
		return lifetime
	}
	return lifetime - min(lifetime, seconds)
}

// With is the state with what another one has beyond it.
func (s State) With(more State) State {
	all := State{slices.Clone(s.Addresses), slices.Clone(s.Routes), slices.Clone(s.Neighbours)}
	for _, a := range more.Addresses {
		if !s.HasAddress(a) {
			all.Addresses = append(all.Addresses, a)
		}
	}
	for _, r := range more.Routes {
		if !s.HasRoute(r) {
			all.Routes = append(all.Routes, r)
		}
	}
	for _, n := range more.Neighbours {
		if !slices.ContainsFunc(s.Neighbours, func(o Neighbour) bool { return o.IP == n.IP && o.Flags == n.Flags }) {
			all.Neighbours = append(all.Neighbours, n)
		}
	}
	return all
}

// HasAddress tells whether an address is among the state's.
func (s State) HasAddress(a Address) bool { return slices.ContainsFunc(s.Addresses, a.Same) }

// HasRoute tells whether a route is among the state's.
func (s State) HasRoute(r Route) bool { return slices.ContainsFunc(s.Routes, r.Same) }

// Gateways are those of the routes to everywhere, by the routes' family: true
// for IPv6.
func (s State) Gateways() map[bool][]netip.Addr {
	all := map[bool][]netip.Addr{}
	for _, r := range s.Routes {
		p, err := r.parse()
		if err != nil || p.dst.Bits() != 0 {
			continue
		}
		six := p.dst.Addr().Is6()
		for _, g := range p.gateways {
			if !slices.Contains(all[six], g) {
				all[six] = append(all[six], g)
			}
		}
	}
	return all
}
