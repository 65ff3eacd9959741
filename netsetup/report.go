package netsetup

import (
	"net/netip"
	"time"

	"github.com/vmrun/vmrun/netsetup/dhcp"
	"github.com/vmrun/vmrun/netsetup/firewall"
)

// State is what a network is at a moment.
type State string

const (
	Up         State = "up"
	Broken     State = "broken"      // its bridge is gone: VMs on it are cut off, and none can join
	GoingDown  State = "going down"  // with the last VM on it
	KeeperGone State = "keeper gone" // its members start another one; without any, Sweep undoes it
)

// Summary is a network in use in a line.
type Summary struct {
	ID       string       `json:"id"` // the network's folder: NAME, or NAME.HASH for one of a file's own
	Name     string       `json:"name"`
	Dir      string       `json:"dir,omitempty"` // folder of the defining file; "": shared by the host
	Mode     Mode         `json:"mode"`
	State    State        `json:"state"`
	Bridge   string       `json:"bridge"`
	Subnet   netip.Prefix `json:"subnet,omitzero"` // zero: vmrun gives no addresses there
	Members  int          `json:"members"`         // how many NICs are on it
	Holders  int          `json:"holders"`         // how many processes keep it up without a VM
	Since    time.Time    `json:"since,omitzero"`  // zero: unknown
	KeeperID int          `json:"keeper_pid"`      // 0: there is none
}

// Report is a network in use as its keeper tells it. Where the keeper is gone it
// is what can be read of it: without leases, counters and holders. In JSON its
// members and holders stand in place of the summary's numbers of them.
type Report struct {
	Summary
	Uplink     string       `json:"uplink,omitempty"`
	VLAN       int          `json:"vlan,omitempty"`
	Tenant     string       `json:"tenant,omitempty"`
	Address    netip.Prefix `json:"address,omitzero"` // the host's own
	Gateway    netip.Addr   `json:"gateway,omitzero"`
	PoolFirst  netip.Addr   `json:"pool_first,omitzero"`
	PoolLast   netip.Addr   `json:"pool_last,omitzero"`
	DHCP       bool         `json:"dhcp"`
	DNS        bool         `json:"dns"`
	MTU        int          `json:"mtu"` // bytes
	HostAccess HostAccess   `json:"host_access,omitempty"`
	Firewall   string       `json:"firewall,omitempty"` // what carries its rules; "": it has none
	Refused    *Refused     `json:"refused,omitempty"`  // nil: not known
	Group      *Group       `json:"group,omitempty"`    // whose members may run VMs on it; nil: root alone
	Holders    []Holder     `json:"holders"`
	Members    []Member     `json:"members"` // one for each NIC, by VM and NIC
	Leases     []Lease      `json:"leases"`  // by address
}

// Holder is a process that keeps a network up without a VM on it.
type Holder struct {
	PID   int       `json:"pid"`
	UID   uint32    `json:"uid"`
	Since time.Time `json:"since"`
}

// Member is a NIC on a network and who has it.
type Member struct {
	VM       string     `json:"vm"`
	NIC      int        `json:"nic"`
	MAC      MAC        `json:"mac"`
	IP       netip.Addr `json:"ip,omitzero"` // zero: not vmrun's to give
	Link     string     `json:"link"`        // the TAP's name
	PID      int        `json:"pid"`         // of the process that holds the port; 0: it has to come back after a keeper's death
	UID      uint32     `json:"uid"`         // of that process
	Since    time.Time  `json:"since"`
	Sent     Traffic    `json:"sent"`           // by the guest
	Received Traffic    `json:"received"`       // by the guest
	Counted  bool       `json:"counted"`        // sent, received and guarded are known: the TAP is there
	Guarded  uint64     `json:"guarded"`        // frames that the port's guard dropped: with a tag, or from another MAC
	DHCP     *Talk      `json:"dhcp,omitempty"` // nil: vmrun gives no addresses there
	Leased   bool       `json:"leased"`         // the guest has taken its address
}

// Refused is how many packets the network's own rules have kept from passing.
type Refused = firewall.Refused

// Talk is what a port and the network's DHCP server have said to each other.
type Talk = dhcp.Talk

// Traffic counts what passed since the port is there.
type Traffic struct {
	Bytes   uint64 `json:"bytes"`
	Packets uint64 `json:"packets"`
	Dropped uint64 `json:"dropped"`
}

// Lease is an address of a network and who has it.
type Lease = dhcp.Lease
