package profiles

import (
	"maps"
	"net/netip"
	"slices"
)

// nicResolver resolves NICs against the networks that they can name.
type nicResolver struct {
	at       place // of the file's networks
	networks map[string]Network
}

// resolveNICs resolves the network cards of the document at p, and adds the
// built-in networks that they name to the networks.
func resolveNICs(p place, raw []rawNIC, networks map[string]Network) []NIC {
	r := nicResolver{at: p.at("networks"), networks: networks}
	p = p.at("nics")
	var nics []NIC
	for i, raw := range raw {
		if p.item(i).isTable() {
			nics = append(nics, r.resolve(p.item(i), raw))
		}
	}
	if len(nics) == len(raw) {
		checkTwice(p, nics)
		checkPorts(p, nics)
	}
	return nics
}

func (r *nicResolver) resolve(p place, raw rawNIC) NIC {
	nic := NIC{
		Network: or(raw.Network, ""),
		Queues:  or(raw.Queues, 1),
		Trunk:   or(raw.Trunk, false),
		Spoof:   or(raw.Spoof, false),
	}
	if raw.MAC != nil {
		mac, err := parseMAC(*raw.MAC)
		p.at("mac").check(err)
		nic.MAC = mac
	}
	nic.Forward = resolveForwards(p.at("forward"), raw.Forward)
	network := r.network(p.at("network"), raw.Network)
	if network.Mode == "" {
		return nic
	}
	keys := nicKeys
	if network.Libvirt != "" {
		keys = libvirtNICKeys
	}
	checkTaken(p, "network "+quote(network.Name), network.Mode, keys)
	if raw.IP != nil && network.hasAddresses() {
		nic.IP = r.address(p.at("ip"), *raw.IP, network)
	}
	switch at := p.at("forward"); {
	case network.Mode == User:
		checkUserForwards(at, nic.Forward)
	case network.Mode == NAT && !network.DHCP && len(raw.Forward) > 0 && !p.at("ip").exists():
		at.faultf("network %q has dhcp = false, so nobody knows where to forward to: give the card an ip", network.Name)
	}
	return nic
}

// network finds the network that a NIC names. It has no mode where that is
// not known, for a fault that is already told.
func (r *nicResolver) network(p place, raw *string) Network {
	if raw == nil {
		if !p.exists() {
			p.faultf("missing: name a network of this file, or nat, host-only or user")
		}
		return Network{}
	}
	if network, ok := r.networks[*raw]; ok {
		return network
	}
	network, ok := Builtin(*raw)
	switch {
	case ok:
		r.networks[*raw] = network
	case r.at.isTable() || !r.at.exists():
		known := append(slices.Sorted(maps.Keys(r.networks)), builtinNames()...)
		p.faultf("no network %s: %s", quote(*raw), guess(*raw, known))
	}
	return network
}

// address checks the fixed address of a NIC.
func (r *nicResolver) address(p place, raw string, network Network) netip.Addr {
	if !network.Subnet.IsValid() {
		if !r.at.at(network.Name).at("subnet").exists() {
			p.faultf("network %q has no subnet that the address could be in: define a network with one", network.Name)
		}
		return netip.Addr{}
	}
	addr, err := parseHost(raw, network.Subnet)
	switch {
	case !p.check(err):
		return netip.Addr{}
	case addr == network.Address.Addr():
		p.faultf("%v is the host's address on network %q", addr, network.Name)
	case addr == network.Gateway:
		p.faultf("%v is the gateway of network %q", addr, network.Name)
	}
	return addr
}

// checkTwice finds MAC addresses and fixed addresses that two cards have.
func checkTwice(p place, nics []NIC) {
	for i, nic := range nics {
		if nic.MAC != nil {
			same := func(o NIC) bool { return slices.Equal(o.MAC, nic.MAC) }
			if first := slices.IndexFunc(nics, same); first < i {
				p.item(i).at("mac").faultf("nics[%d] has the same", first)
			}
		}
		if nic.IP.IsValid() {
			same := func(o NIC) bool { return o.IP == nic.IP && o.Network == nic.Network }
			if first := slices.IndexFunc(nics, same); first < i {
				p.item(i).at("ip").faultf("nics[%d] has the same", first)
			}
		}
	}
}
