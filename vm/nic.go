package vm

import (
	"crypto/sha256"
	"fmt"

	"github.com/vmrun/vmrun/netsetup"
	"github.com/vmrun/vmrun/profiles"
)

// newNIC plans the network card of a virtual machine at an index.
func newNIC(vmName string, index int, n profiles.NIC, network profiles.Network, h Host) (NIC, error) {
	nic := NIC{Network: network.Name, Mode: network.Mode, Queues: max(n.Queues, 1), Forwards: n.Forward}
	mac, err := nicMAC(vmName, index, n, network.Mode, h)
	if err != nil {
		return NIC{}, err
	}
	nic.MAC = mac
	if network.Mode == profiles.User {
		return nic, nil
	}
	spec := networkSpec(network)
	nic.Spec = &spec
	nic.Port = &netsetup.PortSpec{
		VM: vmName, NIC: index, MAC: mac, IP: n.IP, Queues: nic.Queues, Trunk: n.Trunk, Spoof: n.Spoof,
	}
	return nic, nil
}

// mayGetLease tells whether somebody may be there who gives the NIC an address:
// ourselves, QEMU, or whoever does so on a wire that is not ours.
func (n NIC) mayGetLease() bool {
	return n.Spec == nil || n.Spec.DHCP || n.Mode == profiles.Bridge || n.Mode == profiles.VLAN
}

// whyRoot says what a network takes privilege for.
func whyRoot(n profiles.Network) string {
	does := "makes a bridge and firewall rules"
	switch n.Mode {
	case profiles.NAT:
		does = "makes a bridge and firewall rules and turns forwarding on"
	case profiles.VLAN:
		does = "makes a VLAN interface and a bridge"
	case profiles.Bridge:
		does = "puts a TAP device into a bridge"
	}
	return fmt.Sprintf("use network %s: mode %s needs root, as it %s; only mode user does not", n.Name, n.Mode, does)
}

// nicMAC is the address that the profile gives, or one derived from who the
// machine is. Where other hosts are on the same wire it is also derived from
// which host this is, since they may run the same profile.
func nicMAC(vmName string, index int, n profiles.NIC, mode profiles.Mode, h Host) (netsetup.MAC, error) {
	if n.MAC != nil {
		return netsetup.ParseMAC(n.MAC)
	}
	text := fmt.Sprintf("%s\x00%d", vmName, index)
	if mode == profiles.Bridge || mode == profiles.VLAN {
		text += "\x00" + h.MachineID
	}
	sum := sha256.Sum256([]byte(text))
	return netsetup.MAC{0x52, 0x54, 0x00, sum[0], sum[1], sum[2]}, nil
}

// networkSpec is a profile's network in netsetup's terms.
func networkSpec(n profiles.Network) netsetup.Spec {
	return netsetup.Spec{
		Name: n.Name, Dir: n.Dir, Shared: n.Shared, Mode: netsetup.Mode(n.Mode),
		Subnet: n.Subnet, Address: n.Address, Gateway: n.Gateway, PoolFirst: n.PoolFirst, PoolLast: n.PoolLast,
		DHCP: n.DHCP, DNS: n.DNS, MTU: n.MTU,
		HostAccess: netsetup.HostAccess(n.HostAccess), Firewall: string(n.Firewall),
		Bridge: n.Bridge, Libvirt: n.Libvirt, Uplink: n.Uplink, Takeover: n.Takeover, VLAN: n.VLAN, Tenant: n.Tenant,
	}
}
