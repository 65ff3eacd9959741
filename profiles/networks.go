package profiles

import (
	"maps"
	"path/filepath"
	"slices"
)

// resolveNetworks resolves the networks of the file. One whose mode is not
// known has none: checks of what uses it pass it over.
func resolveNetworks(p place, raw map[string]rawNetwork) map[string]Network {
	networks := make(map[string]Network)
	for _, name := range slices.Sorted(maps.Keys(raw)) {
		at := p.at(name)
		at.check(checkLabel(name))
		if _, taken := builtin(name); taken {
			at.faultf("the built-in network has this name: choose another")
		}
		networks[name] = resolveNetwork(at, name, raw[name])
	}
	checkClaims(p, networks)
	checkOverlaps(p, networks)
	return networks
}

func resolveNetwork(p place, name string, raw rawNetwork) Network {
	n := Network{
		Name:     name,
		Mode:     or(raw.Mode, ""),
		MTU:      or(raw.MTU, 0),
		Firewall: or(raw.Firewall, FirewallAuto),
		Shared:   or(raw.Shared, false),
		Bridge:   or(raw.Bridge, ""),
		Uplink:   or(raw.Uplink, ""),
		VLAN:     or(raw.VLAN, 0),
		Tenant:   or(raw.Tenant, ""),
	}
	if !n.Shared {
		n.Dir = filepath.Dir(p.src.path)
	}
	checkTexts(p, raw)
	if n.Mode == "" {
		if p.isTable() && !p.at("mode").exists() {
			p.at("mode").faultf("missing: nat, host-only, bridge, vlan or user")
		}
		return n
	}
	checkTaken(p, "this network", n.Mode, networkKeys)
	checkLinks(p, n.Mode)
	if n.hasAddresses() {
		n.resolveAddresses(p, raw)
	}
	n.resolveServices(p, raw)
	return n
}

// hasAddresses tells whether addresses on the network are ours to give.
func (n *Network) hasAddresses() bool {
	return n.Mode == NAT || n.Mode == HostOnly || n.Mode == VLAN
}

// checkTexts checks the keys that name something on the host.
func checkTexts(p place, raw rawNetwork) {
	if raw.Bridge != nil {
		p.at("bridge").check(checkLink(*raw.Bridge))
	}
	if raw.Uplink != nil {
		p.at("uplink").check(checkLink(*raw.Uplink))
	}
	if raw.Tenant != nil {
		p.at("tenant").check(checkTenant(*raw.Tenant))
	}
}

// checkLinks finds a network that does not say where its wire is.
func checkLinks(p place, mode Mode) {
	bridge, uplink := p.at("bridge"), p.at("uplink")
	switch {
	case mode == VLAN:
		for _, key := range []string{"uplink", "vlan"} {
			if !p.at(key).exists() {
				p.at(key).faultf("missing: mode \"vlan\" needs it")
			}
		}
	case mode != Bridge || p.at("libvirt").exists():
	case bridge.exists() && uplink.exists():
		uplink.faultf("one of bridge and uplink: join an existing bridge, or make one over an interface")
	case !bridge.exists() && !uplink.exists():
		p.at("bridge").faultf("missing: mode \"bridge\" needs a bridge to join, or an uplink to make one over")
	}
}

// resolveServices decides what the host does on the network.
func (n *Network) resolveServices(p place, raw rawNetwork) {
	switch n.Mode {
	case NAT:
		n.DHCP, n.HostAccess = true, HostServices
	case HostOnly:
		n.DHCP, n.HostAccess = true, HostAll
	case VLAN:
		n.DHCP, n.HostAccess = p.at("subnet").exists(), HostNone
		if p.at("address").exists() {
			n.HostAccess = HostServices
		}
	default: // the LAN's and QEMU's services, and no rules of ours
		n.HostAccess = HostAll
		return
	}
	n.DHCP = or(raw.DHCP, n.DHCP)
	n.HostAccess = or(raw.HostAccess, n.HostAccess)
	n.DNS = or(raw.DNS, n.HostAccess != HostNone)
	n.checkServices(p)
}

func (n *Network) checkServices(p place) {
	addressless := n.Mode == VLAN && !p.at("address").exists()
	if n.DHCP && n.Subnet.IsValid() && !n.PoolFirst.IsValid() && !p.at("pool").exists() {
		p.at("subnet").faultf("%v leaves no address to guests", n.Subnet)
	}
	if n.DHCP && n.Mode == VLAN && !p.at("subnet").exists() {
		p.at("dhcp").faultf("needs the network's subnet")
	}
	if !n.DHCP && p.at("pool").exists() {
		p.at("pool").faultf("has no effect, since vmrun serves no DHCP here")
	}
	if addressless && n.HostAccess != HostNone {
		p.at("host_access").faultf("%q needs an address of the host: set address", n.HostAccess)
	}
	switch {
	case !n.DNS:
	case addressless:
		p.at("dns").faultf("needs an address of the host: set address")
	case n.HostAccess == HostNone:
		p.at("dns").faultf("host_access = \"none\" keeps guests from it")
	}
}

// checkClaims finds networks that want the same wire for themselves.
func checkClaims(p place, networks map[string]Network) {
	type claim struct {
		mode   Mode
		uplink string
		vlan   int
	}
	holders := make(map[claim]string)
	for _, name := range slices.Sorted(maps.Keys(networks)) {
		n := networks[name]
		c := claim{n.Mode, n.Uplink, n.VLAN}
		if n.Uplink == "" || n.Mode != Bridge && (n.Mode != VLAN || n.VLAN == 0) {
			continue
		}
		if holder, taken := holders[c]; taken {
			p.at(name).at("uplink").faultf("network %q is on it already: give both uses one name", holder)
			continue
		}
		holders[c] = name
	}
}

// checkOverlaps finds subnets that the host can't have both an address in.
// Tenants of which the host knows nothing may use the same one.
func checkOverlaps(p place, networks map[string]Network) {
	names := slices.Sorted(maps.Keys(networks))
	for i, name := range names {
		for _, other := range names[:i] {
			a, b := networks[name], networks[other]
			if a.Address.IsValid() && b.Address.IsValid() && a.Subnet.Overlaps(b.Subnet) {
				p.at(name).at("subnet").faultf("%v overlaps %v of network %q", a.Subnet, b.Subnet, other)
			}
		}
	}
}
