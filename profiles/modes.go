package profiles

import (
	"fmt"
	"slices"
	"strings"
)

// modeKeys says which keys a mode takes, of a network and of a NIC on it.
// Every mode takes mode, and a NIC's network and mac.
type modeKeys struct {
	mode    Mode
	network []string
	nic     []string
}

// modes is the table of modes. What a mode does not take would have no effect:
// on a bridge the LAN gives addresses, and in user mode QEMU does.
var modes = []modeKeys{
	{
		mode:    NAT,
		network: []string{"subnet", "address", "gateway", "pool", "dhcp", "dns", "mtu", "host_access", "firewall", "shared"},
		nic:     []string{"ip", "forward", "queues", "trunk", "spoof"},
	}, {
		mode:    HostOnly,
		network: []string{"subnet", "address", "gateway", "pool", "dhcp", "dns", "mtu", "host_access", "firewall", "shared"},
		nic:     []string{"ip", "queues", "trunk", "spoof"},
	}, {
		mode:    Bridge,
		network: []string{"bridge", "libvirt", "uplink", "takeover", "mtu", "firewall", "shared"},
		nic:     []string{"queues", "trunk", "spoof"}, // with libvirt also forward
	}, {
		mode:    VLAN,
		network: []string{"uplink", "vlan", "tenant", "subnet", "address", "gateway", "pool", "dhcp", "dns", "mtu", "host_access", "firewall", "shared"},
		nic:     []string{"ip", "queues", "trunk", "spoof"},
	}, {
		mode: User,
		nic:  []string{"forward"},
	},
}

func networkKeys(m modeKeys) []string { return m.network }
func nicKeys(m modeKeys) []string     { return m.nic }

// libvirtNICKeys is nicKeys for a network of libvirt's, where vmrun is told the
// guest's address.
func libvirtNICKeys(m modeKeys) []string {
	if m.mode == Bridge {
		return append(slices.Clone(m.nic), "forward")
	}
	return m.nic
}

// checkTaken finds keys of the table at p that are of other modes than this.
// The subject is what is in the mode.
func checkTaken(p place, subject string, mode Mode, keys func(modeKeys) []string) {
	for _, key := range p.names() {
		var takers []string
		for _, m := range modes {
			if slices.Contains(keys(m), key) {
				takers = append(takers, string(m.mode))
			}
		}
		if len(takers) > 0 && !slices.Contains(takers, string(mode)) {
			p.at(key).faultf("%s is in mode %q: only %s", subject, mode, verb(takers))
		}
	}
}

func verb(takers []string) string {
	if len(takers) == 1 {
		return takers[0] + " takes this key"
	}
	last := len(takers) - 1
	return fmt.Sprintf("%s and %s take this key", strings.Join(takers[:last], ", "), takers[last])
}

// Builtin is the network that every profile can use under this name.
func Builtin(name string) (Network, bool) {
	n := Network{Name: name, Firewall: FirewallAuto, Shared: true}
	switch name {
	case "nat":
		n.Mode, n.DHCP, n.DNS, n.HostAccess = NAT, true, true, HostServices
	case "host-only":
		n.Mode, n.DHCP, n.DNS, n.HostAccess = HostOnly, true, true, HostAll
	case "user":
		n.Mode, n.HostAccess = User, HostAll
	default:
		return Network{}, false
	}
	return n, true
}

func builtinNames() []string { return []string{"nat", "host-only", "user"} }
