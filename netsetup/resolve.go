package netsetup

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vmrun/vmrun/netsetup/firewall"
)

// ranges is where networks without a subnet get a /24 from: private (RFC 1918)
// and away from what Docker, Kubernetes, libvirt and LXD pick by default.
var ranges = netip.MustParsePrefix("10.160.0.0/12")

// Resolved is a network with nothing left to choose.
type Resolved struct {
	Spec
	Subnet    netip.Prefix `json:"resolved_subnet,omitzero"`
	Address   netip.Prefix `json:"resolved_address,omitzero"`
	Gateway   netip.Addr   `json:"resolved_gateway,omitzero"`
	PoolFirst netip.Addr   `json:"resolved_pool_first,omitzero"`
	PoolLast  netip.Addr   `json:"resolved_pool_last,omitzero"`
	MTU       int          `json:"resolved_mtu"`
	DNSPort   int          `json:"dns_port,omitempty"` // where our DNS listens on Address
	Link      string       `json:"link"`               // the bridge that ports join, ours or the host's

	Backend     firewall.Backend `json:"firewall_backend,omitempty"` // what carries the rules; "": there are none
	LibvirtUUID string           `json:"libvirt_uuid,omitempty"`
}

// joined tells whether the bridge is somebody else's, and stays as it is.
func (s Spec) joined() bool { return s.Bridge != "" || s.Libvirt != "" }

// ConflictError says that the host, as it is, leaves no room for a network.
type ConflictError struct {
	Key    string // the profile's key that asks for it
	Reason string
}

func (e *ConflictError) Error() string { return e.Key + ": " + e.Reason }

func conflict(key, format string, args ...any) error {
	return &ConflictError{Key: key, Reason: fmt.Sprintf(format, args...)}
}

// resolve chooses what the definition leaves open and checks the rest against
// the host. It changes nothing.
func resolve(spec Spec, n names, f Facts) (Resolved, error) {
	r := Resolved{Spec: spec, Subnet: spec.Subnet, Address: spec.Address, Gateway: spec.Gateway,
		PoolFirst: spec.PoolFirst, PoolLast: spec.PoolLast, MTU: spec.MTU, Link: n.bridge}
	switch {
	case spec.Bridge != "":
		return r, r.joinBridge("bridge", spec.Bridge, f)
	case spec.Libvirt != "":
		return r, r.joinLibvirt(f)
	}
	if err := r.checkUplink(n, f); err != nil {
		return r, err
	}
	if err := r.chooseSubnet(n, f); err != nil {
		return r, err
	}
	r.chooseAddresses()
	r.chooseMTU(f)
	return r, nil
}

// joinBridge checks a bridge of the host's that the key of the profile leads to.
func (r *Resolved) joinBridge(key, name string, f Facts) error {
	l, ok := f.link(name)
	switch {
	case !ok:
		return conflict(key, "%s does not exist on this host", name)
	case l.Kind != "bridge":
		return conflict(key, "%s is no Linux bridge but a %s; name it as uplink to have a bridge made over it", l.Name, l.Kind)
	case isOurs(l.Name):
		return conflict(key, "%s belongs to another network; use that network's name instead", l.describe())
	case !l.Up:
		return conflict(key, "%s is down", l.Name)
	case r.MTU != 0 && r.MTU != l.MTU:
		return conflict("mtu", "%s has %d bytes, and a bridge that is joined stays as it is", l.Name, l.MTU)
	}
	r.Link = l.Name
	r.MTU = l.MTU
	return nil
}

func (r *Resolved) checkUplink(n names, f Facts) error {
	if r.Uplink == "" {
		return nil
	}
	l, ok := f.link(r.Uplink)
	switch {
	case !ok:
		return conflict("uplink", "%s does not exist on this host", r.Uplink)
	case l.Loopback:
		return conflict("uplink", "%s is the loopback interface", l.Name)
	case !l.Up:
		return conflict("uplink", "%s is down; bring it up first (ip link set %s up)", l.Name, l.Name)
	case isOurs(l.Name):
		return conflict("uplink", "%s belongs to vmrun itself", l.describe())
	case l.Kind == "bridge":
		return conflict("uplink", "%s is a bridge; to join it use mode bridge with bridge = %q", l.Name, l.Name)
	case l.Wireless:
		return conflict("uplink", "%s is Wi-Fi, whose access point takes frames of one station only; use mode nat", l.Name)
	case l.Master != 0 && !f.masterIs(l, n.bridge):
		return conflict("uplink", "%s is already part of %s", l.Name, f.masterName(l))
	case r.MTU > l.MTU:
		return conflict("mtu", "%d is more than the %d bytes of %s", r.MTU, l.MTU, l.Name)
	}
	if r.Mode == VLAN {
		return r.checkVLAN(l, n, f)
	}
	return r.checkBridgedUplink(l, f)
}

func (f Facts) masterIs(l Link, name string) bool {
	m, ok := f.byIndex(l.Master)
	return ok && m.Name == name
}

func (f Facts) masterName(l Link) string {
	if m, ok := f.byIndex(l.Master); ok {
		return m.describe()
	}
	return "another interface"
}

func (r *Resolved) checkVLAN(uplink Link, n names, f Facts) error {
	for _, l := range f.Links {
		if l.Kind != "vlan" || l.Parent != uplink.Index || l.VLAN != r.VLAN || l.Group == n.group {
			continue
		}
		return conflict("vlan", "VLAN %d of %s is taken by %s", r.VLAN, uplink.Name, f.owner(l))
	}
	return nil
}

// owner names who has a link: our network where a bridge of ours is its master.
func (f Facts) owner(l Link) string {
	if m, ok := f.byIndex(l.Master); ok {
		return fmt.Sprintf("%s in %s", l.describe(), m.describe())
	}
	return l.describe()
}

func (r *Resolved) chooseSubnet(n names, f Facts) error {
	if r.Subnet.IsValid() {
		if who := f.holder(r.Subnet, n.group); who != "" {
			return conflict("subnet", "%s is taken: %s", r.Subnet, who)
		}
		return nil
	}
	if r.Mode != HostOnly && r.Mode != NAT {
		return nil
	}
	start := preferred(n.id)
	for i := range uint32(1 << (24 - ranges.Bits())) {
		s := nth(ranges, (start+i)%(1<<(24-ranges.Bits())), 24)
		if f.holder(s, n.group) == "" {
			r.Subnet = s
			return nil
		}
	}
	return conflict("subnet", "no /24 of %s is free; name a free one", ranges)
}

// preferred spreads networks over the range by name, so that a network has the
// same subnet each time it comes up.
func preferred(id string) uint32 {
	sum := sha256.Sum256([]byte("subnet\x00" + id))
	return binary.BigEndian.Uint32(sum[:]) % (1 << (24 - ranges.Bits()))
}

// nth is the i-th subnet of the given length within a range.
func nth(within netip.Prefix, i uint32, bits int) netip.Prefix {
	a := within.Masked().Addr().As4()
	v := binary.BigEndian.Uint32(a[:]) + i<<(32-bits)
	binary.BigEndian.PutUint32(a[:], v)
	return netip.PrefixFrom(netip.AddrFrom4(a), bits)
}

// chooseAddresses gives the host the first address of the subnet where the
// mode puts the host on the network, and DHCP all that is left.
func (r *Resolved) chooseAddresses() {
	if !r.Subnet.IsValid() {
		return
	}
	if !r.Address.IsValid() && (r.Mode == HostOnly || r.Mode == NAT) {
		host := r.Subnet.Masked().Addr().Next()
		if r.Gateway.IsValid() {
			host = r.Gateway
		}
		r.Address = netip.PrefixFrom(host, r.Subnet.Bits())
	}
	switch {
	case r.Mode == NAT && !r.Gateway.IsValid():
		r.Gateway = r.Address.Addr()
	case r.Mode != NAT && r.Gateway == r.Address.Addr():
		r.Gateway = netip.Addr{} // the host does not forward here: a route to it leads nowhere
	}
	if !r.PoolFirst.IsValid() {
		r.PoolFirst = r.Subnet.Masked().Addr().Next()
		if r.PoolFirst == r.Address.Addr() {
			r.PoolFirst = r.PoolFirst.Next()
		}
		r.PoolLast = lastAddr(r.Subnet).Prev()
	}
}

// lastAddr is the broadcast address of an IPv4 subnet.
func lastAddr(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr().As4()
	v := binary.BigEndian.Uint32(a[:]) | (1<<(32-p.Bits()) - 1)
	binary.BigEndian.PutUint32(a[:], v)
	return netip.AddrFrom4(a)
}

// chooseMTU takes the smallest of the ways out, since guests learn one value.
func (r *Resolved) chooseMTU(f Facts) {
	if r.MTU != 0 {
		return
	}
	if l, ok := f.link(r.Uplink); ok {
		r.MTU = l.MTU
		return
	}
	r.MTU = 1500
	if r.Mode != NAT {
		return
	}
	for _, route := range f.Routes {
		if l, ok := f.link(route.Link); ok && isDefault(route.Dst) && !l.Loopback && l.MTU < r.MTU {
			r.MTU = l.MTU
		}
	}
}
