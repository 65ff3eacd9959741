// Package profiles turns TOML text into checked, complete profiles. It touches
// nothing but text: whether a kernel, an image or an interface exists is for
// those to find out who use it.
package profiles

import (
	"net"
	"net/netip"
)

// Profile describes one virtual machine. Every field has its final value: a
// default of the format has been filled in, a path is absolute, and a network
// that a NIC names is in Networks. A zero value stands only where its field's
// comment gives it a meaning.
type Profile struct {
	Name     string             // DNS label; default: the file's name
	File     string             // absolute path of the profile, for messages
	Machine  Machine            //
	Boot     Boot               //
	Disks    []Disk             // in the order in which the guest sees them
	NICs     []NIC              // in the order in which the guest sees them
	Networks map[string]Network // by name: the file's own and the built-ins in use
}

// Machine is the virtual hardware and who runs it.
type Machine struct {
	CPUs    int         // at least 1
	MaxCPUs int         // at least CPUs: as many as it can be given while it runs
	Memory  Size        // bytes, at least 16 MiB
	Accel   Accel       //
	Type    MachineType //
	CPU     string      // a QEMU CPU model
	Display Display     //
	User    string      // whose process QEMU is; "": the invoking user's
	Args    []string    // appended to QEMU's command line as they are
}

// Boot says what the guest starts from. The zero value boots from the first
// disk, then from the network.
type Boot struct {
	Kernel  string   // absolute path, KernelAuto, or "" for firmware boot
	Initrd  string   // absolute path, InitrdMicro, or "" for none
	Cmdline string   // without the console, which is added at launch
	Command []string // what the micro guest runs; nil: a shell
}

const (
	KernelAuto  = "auto"  // the newest kernel of the host
	InitrdMicro = "micro" // the micro guest
)

// Disk is one virtio disk.
type Disk struct {
	Path   string     // absolute
	Format DiskFormat //
	Size   Size       // bytes the guest sees at least; 0: the image's own size
	Keep   bool       // false: changes are thrown away when the VM ends
}

// NIC is one virtio network card.
type NIC struct {
	Network string           // a key of Profile.Networks
	MAC     net.HardwareAddr // nil: derived from the VM's name at launch
	IP      netip.Addr       // zero: the network decides
	Forward []Forward        //
	Queues  int              // at least 1
	Trunk   bool             // the guest may send tagged frames
	Spoof   bool             // the guest may send from any MAC
}

// Forward carries a port of the host to a port of the guest.
type Forward struct {
	HostAddr  netip.Addr `json:"host_addr"` // where the host listens; default 127.0.0.1
	HostPort  uint16     `json:"host_port"`
	GuestPort uint16     `json:"guest_port"`
	Proto     string     `json:"proto"` // "tcp" or "udp"
}

// Network is one network as the file defines it. Which fields a mode takes is
// in the package's table of modes.
type Network struct {
	Name       string       // DNS label
	Dir        string       // absolute folder of the defining file; "" where Shared
	Mode       Mode         //
	Subnet     netip.Prefix // zero: chosen at launch (host-only, nat) or none (bridge, vlan, user)
	Address    netip.Prefix // the host's address on the network; zero: none, or with Subnet chosen at launch
	Gateway    netip.Addr   // what guests use; zero: Address's where there is one
	PoolFirst  netip.Addr   // zero: chosen with Subnet
	PoolLast   netip.Addr   //
	DHCP       bool         //
	DNS        bool         //
	MTU        int          // bytes; 0: the uplink's, the joined bridge's, or 1500
	HostAccess HostAccess   //
	Firewall   Firewall     //
	Shared     bool         // one network for the whole host, whatever file names it
	Bridge     string       // bridge: an existing bridge to join
	Libvirt    string       // bridge: a network of libvirt's to join
	Uplink     string       // bridge, vlan: the physical interface
	Takeover   bool         // bridge: the host uses Uplink, and what it has there moves to the bridge
	VLAN       int          // vlan: 1 to 4094
	Tenant     string       // vlan: whose network it is, for people
}

// Mode is what a network is made of.
type Mode string

const (
	HostOnly Mode = "host-only"
	NAT      Mode = "nat"
	Bridge   Mode = "bridge"
	VLAN     Mode = "vlan"
	User     Mode = "user"
)

// Accel is what executes the guest's code.
type Accel string

const (
	AccelAuto Accel = "auto" // KVM, and TCG with a warning where KVM does not work
	AccelKVM  Accel = "kvm"
	AccelTCG  Accel = "tcg"
)

// MachineType is a QEMU machine.
type MachineType string

const (
	Q35     MachineType = "q35"
	PC      MachineType = "pc"
	MicroVM MachineType = "microvm"
)

// Display is what a machine's screen is seen through.
type Display string

const (
	DisplayNone  Display = "none" // no screen: there is the serial console
	DisplayVNC   Display = "vnc"
	DisplaySPICE Display = "spice"
)

// DiskFormat is how a disk image is laid out in its file.
type DiskFormat string

const (
	FormatAuto  DiskFormat = "auto" // by the image's first bytes; only for disks that are not kept
	FormatQCOW2 DiskFormat = "qcow2"
	FormatRaw   DiskFormat = "raw"
)

// HostAccess is what guests reach on the host itself.
type HostAccess string

const (
	HostServices HostAccess = "services" // DHCP, DNS, ping
	HostAll      HostAccess = "all"
	HostNone     HostAccess = "none" // DHCP only
)

// Firewall is the backend that carries a network's rules.
type Firewall string

const (
	FirewallAuto     Firewall = "auto"
	FirewallNFTables Firewall = "nftables"
	FirewallIPTables Firewall = "iptables"
)
