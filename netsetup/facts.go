package netsetup

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vmrun/vmrun/netsetup/firewall"
	"github.com/vmrun/vmrun/netsetup/libvirt"
	"github.com/vmrun/vmrun/netsetup/uplink"
)

// Facts is what a plan depends on: the host as it is before the network comes
// up. It is plain data, so that a plan can be made for any host.
type Facts struct {
	Links    []Link
	Routes   []Route
	Firewall firewall.Facts
	Wish     firewall.Wish   // for rules of networks that leave it open; "": auto
	Forward  map[string]bool // links whose IPv4 forwarding is on without us

	Libvirt   []libvirt.Network // active or not
	NoLibvirt error             // why they are not known; libvirt.ErrAbsent where no daemon runs

	Uplinks map[string]uplink.Facts // by name, those that are to become ports of a bridge
}

// Link is an interface of the host.
type Link struct {
	Index    int
	Name     string
	Altname  string // the first one; "" without
	Kind     string // "bridge", "vlan", "tuntap", "veth", "device", …
	MAC      MAC
	MTU      int
	Up       bool
	Wireless bool
	Loopback bool
	Group    uint32
	Parent   int // index of the link below a vlan
	Master   int // index of the bridge or bond that has it; 0: none
	VLAN     int
	Addrs    []netip.Prefix

	Persistent bool // a TAP that outlives its files

	In, Out Traffic // frames that entered the host by it, and that left
}

// Route is a route of any table.
type Route struct {
	Dst   netip.Prefix
	Link  string // "" for blackholes and the like
	Table int
}

// link finds a link by name.
func (f Facts) link(name string) (Link, bool) {
	i := slices.IndexFunc(f.Links, func(l Link) bool { return l.Name == name })
	if i < 0 {
		return Link{}, false
	}
	return f.Links[i], true
}

func (f Facts) byIndex(index int) (Link, bool) {
	i := slices.IndexFunc(f.Links, func(l Link) bool { return l.Index == index })
	if i < 0 {
		return Link{}, false
	}
	return f.Links[i], true
}

// egress lists the links by which the host reaches anything but itself and our
// own networks, sorted: a NAT network forwards between its bridge and these.
func (f Facts) egress() []string {
	var names []string
	for _, r := range f.Routes {
		if l, ok := f.link(r.Link); ok && r.Dst.Addr().Is4() && !l.Loopback && (!isOurs(l.Name) || isUplinkBridge(l.Name)) && !slices.Contains(names, l.Name) {
			names = append(names, l.Name)
		}
	}
	slices.Sort(names)
	return names
}

// isDefault tells a route that stands for "everything": /0, and the /1 halves
// by which VPNs outdo a default route.
func isDefault(p netip.Prefix) bool { return p.Bits() <= 1 }

// holder says who has addresses in the range already; "" when nobody has.
// Links of the group own do not count.
func (f Facts) holder(subnet netip.Prefix, own uint32) string {
	for _, n := range f.Libvirt {
		for _, r := range n.Ranges {
			if r.Overlaps(subnet) {
				return fmt.Sprintf("libvirt's network %s has %s", n.Name, r)
			}
		}
	}
	for _, l := range f.Links {
		if l.Group == own {
			continue
		}
		for _, a := range l.Addrs {
			if a.Masked().Overlaps(subnet) {
				return fmt.Sprintf("%s has %s", l.describe(), a)
			}
		}
	}
	for _, r := range f.Routes {
		if isDefault(r.Dst) || !r.Dst.Overlaps(subnet) {
			continue
		}
		if l, ok := f.link(r.Link); ok && l.Group != own {
			return fmt.Sprintf("%s is routed to %s (table %d)", r.Dst, l.describe(), r.Table)
		} else if !ok {
			return fmt.Sprintf("%s has a route of its own (table %d)", r.Dst, r.Table)
		}
	}
	return ""
}

// describe names a link for people, with the network that it belongs to.
func (l Link) describe() string {
	if isOurs(l.Name) && l.Altname != "" {
		return fmt.Sprintf("%s (%s)", l.Name, l.Altname)
	}
	return l.Name
}
