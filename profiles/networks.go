package profiles

import (
	"maps"
	"path/filepath"
	"reflect"
	"slices"
)

// resolveNetworks resolves the networks of the file. One whose mode is not
// known has none: checks of what uses it pass it over.
func resolveNetworks(p place, raw map[string]rawNetwork) map[string]Network {
	networks := make(map[string]Network)
	for _, name := range slices.Sorted(maps.Keys(raw)) {
		at := p.at(name)
		at.check(CheckName(name))
		if _, taken := Builtin(name); taken {
			at.faultf("the built-in network has this name: choose another")
		}
		networks[name] = resolveNetwork(at, name, raw[name])
	}
	checkClaims(p, networks)
	checkOverlaps(p, networks)
	return networks
}

// resolveNetworksOnly resolves the networks that a document is about, ordered by
// name, and checks all of it.
func resolveNetworksOnly(document *node, faults *Faults) []Network {
	p := placeOf(document, faults)
	var raw rawProfile
	decodeTable(p, reflect.ValueOf(&raw).Elem())
	if raw.Name != nil {
		p.at("name").check(CheckName(*raw.Name))
	}
	all := resolveTables(p, raw).Networks
	var networks []Network
	for _, name := range slices.Sorted(maps.Keys(all)) {
		_, ours := Builtin(name)
		switch n := all[name]; {
		case n.Mode != User:
			networks = append(networks, n)
		case !ours:
			p.at("networks").at(name).at("mode").faultf("user is QEMU's own network, which is there only with its machine")
		}
	}
	if len(networks) == 0 && len(*faults) == 0 {
		p.faultf("defines no network: write [networks.NAME]")
	}
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
		Libvirt:  or(raw.Libvirt, ""),
		Uplink:   or(raw.Uplink, ""),
		Takeover: or(raw.Takeover, false),
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
	if raw.Libvirt != nil {
		p.at("libvirt").check(checkLibvirt(*raw.Libvirt))
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
	if mode == Bridge && p.at("takeover").exists() && !p.at("uplink").exists() {
		p.at("takeover").faultf("needs an uplink to take over")
	}
	switch mode {
	case VLAN:
		for _, key := range []string{"uplink", "vlan"} {
			if !p.at(key).exists() {
				p.at(key).faultf("missing: mode \"vlan\" needs it")
			}
		}
	case Bridge:
		checkBridge(p)
	}
}

// checkBridge finds a network that names no bridge to join or make, or several.
func checkBridge(p place) {
	var named []string
	for _, key := range []string{"bridge", "libvirt", "uplink"} {
		if p.at(key).exists() {
			named = append(named, key)
		}
	}
	switch {
	case len(named) == 0:
		p.at("bridge").faultf("missing: mode \"bridge\" needs a bridge to join, an uplink to make one over, or a network of libvirt")
	case len(named) > 1:
		p.at(named[len(named)-1]).faultf("one of bridge, uplink and libvirt: join an existing bridge, make one over an interface, or join a network of libvirt")
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
