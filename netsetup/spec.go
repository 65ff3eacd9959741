// Package netsetup prepares the networks that virtual machines join, hands out
// open TAP devices on them, and takes everything away again when the last
// member has left.
//
// A network in use is owned by a process of its own, the keeper. Attach finds
// it or starts it and asks it for a port; the open connection is the
// membership, so the kernel ends it however the member dies. What the keeper
// does to the host is a plan of small steps (NewPlan), each one journalled with
// its undo before it is done, so that Sweep can restore the host after any
// crash.
package netsetup

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"time"
)

// Mode is what a network is made of. User-mode networks are QEMU's own affair
// and never come here.
type Mode string

const (
	HostOnly Mode = "host-only"
	NAT      Mode = "nat"
	Bridge   Mode = "bridge"
	VLAN     Mode = "vlan"
)

// HostAccess is what guests reach on the host itself.
type HostAccess string

const (
	HostServices HostAccess = "services" // DHCP, DNS, ping
	HostAll      HostAccess = "all"
	HostNone     HostAccess = "none" // DHCP only
)

// Spec is one network as a member wants it. Two members share a network when
// Name, Dir and Shared are equal; then all else has to be equal too. Zero
// values of Subnet, Address, Gateway, the pool and MTU are chosen when the
// network comes up.
type Spec struct {
	Name       string       `json:"name"`
	Dir        string       `json:"dir,omitempty"` // absolute folder of the defining file
	Shared     bool         `json:"shared,omitempty"`
	Mode       Mode         `json:"mode"`
	Subnet     netip.Prefix `json:"subnet,omitzero"`
	Address    netip.Prefix `json:"address,omitzero"` // the host's own
	Gateway    netip.Addr   `json:"gateway,omitzero"`
	PoolFirst  netip.Addr   `json:"pool_first,omitzero"`
	PoolLast   netip.Addr   `json:"pool_last,omitzero"`
	DHCP       bool         `json:"dhcp,omitempty"`
	DNS        bool         `json:"dns,omitempty"`
	MTU        int          `json:"mtu,omitempty"` // bytes
	HostAccess HostAccess   `json:"host_access,omitempty"`
	Firewall   string       `json:"firewall,omitempty"`
	Bridge     string       `json:"bridge,omitempty"`  // an existing bridge to join
	Libvirt    string       `json:"libvirt,omitempty"` // a network of libvirt's to join
	Uplink     string       `json:"uplink,omitempty"`
	Takeover   bool         `json:"takeover,omitempty"` // the host uses Uplink: its addresses and routes move to the bridge
	VLAN       int          `json:"vlan,omitempty"`
	Tenant     string       `json:"tenant,omitempty"`
}

// Difference names the first key, in the profile's spelling, in which two
// definitions of one network differ, with both values; "" when they are equal.
func (s Spec) Difference(other Spec) string {
	a, b := reflect.ValueOf(s), reflect.ValueOf(other)
	for i := range a.NumField() {
		if x, y := a.Field(i).Interface(), b.Field(i).Interface(); x != y {
			return fmt.Sprintf("%s (%s there, %s here)", jsonName(a.Type().Field(i)), shown(a.Field(i)), shown(b.Field(i)))
		}
	}
	return ""
}

// unlike is the *ConflictError for whoever wants a network that runs as s by another
// definition; nil where the definitions are equal.
func (s Spec) unlike(wanted Spec) error {
	if d := s.Difference(wanted); d != "" {
		return conflict("network", "%s is running with another definition: %s", wanted.Name, d)
	}
	return nil
}

func shown(v reflect.Value) string {
	if v.IsZero() && v.Kind() != reflect.Bool {
		return "unset"
	}
	return fmt.Sprint(v.Interface())
}

func jsonName(f reflect.StructField) string {
	tag := f.Tag.Get("json")
	for i := range tag {
		if tag[i] == ',' {
			return tag[:i]
		}
	}
	return tag
}

// PortSpec is one NIC that joins a network.
type PortSpec struct {
	VM     string     `json:"vm"`  // DNS label, the guest's name in DNS
	NIC    int        `json:"nic"` // index in the VM
	MAC    MAC        `json:"mac"`
	IP     netip.Addr `json:"ip,omitzero"` // zero: the network decides
	Queues int        `json:"queues"`      // at least 1
	Trunk  bool       `json:"trunk,omitempty"`
	Spoof  bool       `json:"spoof,omitempty"`
}

// MAC is an Ethernet address that reads and writes itself as text.
type MAC [6]byte

// ParseMAC takes the 6 bytes of an Ethernet address.
func ParseMAC(hw net.HardwareAddr) (MAC, error) {
	if len(hw) != 6 {
		return MAC{}, fmt.Errorf("parse MAC %s: not an Ethernet address", hw)
	}
	return MAC(hw), nil
}

// HardwareAddr is the address as package net has it.
func (m MAC) HardwareAddr() net.HardwareAddr { return net.HardwareAddr(m[:]) }

// String is the address in the usual form, 52:54:00:aa:bb:cc.
func (m MAC) String() string { return m.HardwareAddr().String() }

// MarshalText implements encoding.TextMarshaler.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *MAC) UnmarshalText(text []byte) error {
	hw, err := net.ParseMAC(string(text))
	if err != nil {
		return fmt.Errorf("parse MAC: %w", err)
	}
	*m, err = ParseMAC(hw)
	return err
}

// Host is what netsetup has to know of the machine it works on.
type Host struct {
	Executable string       // the vmrun that is re-executed as keeper
	Runtime    string       // folder of running state, gone after a reboot
	State      string       // folder of state that survives a reboot
	Log        *slog.Logger // nil: nothing is logged
	Version    string       // of the vmrun that Executable is, for who finds its journals

	// RootRuntime is root's Runtime, where an ordinary user looks for networks
	// that root has opened to a group; "": this process sets up its own.
	RootRuntime string
	Firewall    string // what "auto" stands for: nftables or iptables; "": whatever suits the host
}

func (h Host) log() *slog.Logger {
	if h.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return h.Log
}

// firstMemberTimeout is how long a new keeper waits for the member that
// started it, and closingTimeout how long a member waits for a network that is
// going down. Both are bounds on a fault, never waited for in practice.
const (
	firstMemberTimeout = 10 * time.Second
	closingTimeout     = 30 * time.Second
)
