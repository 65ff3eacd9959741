package profiles

// The raw types are the format as it is written: a pointer or a slice is nil
// where the file is silent. The decoder and the JSON Schema are made from
// them, by these tags:
//
//	toml     the key
//	doc      what it means, for editors
//	enum     the words that it may be, separated by commas
//	later    the words that are not supported yet; "*": the whole key
//	min, max the range of an integer
//	why      the reason for the range
//	example  a value, for messages and editors
//	default  the value of an absent key, for editors; a test compares it with
//	         what resolving gives

type rawProfile struct {
	Name     *string               `toml:"name" doc:"Name of the VM: a DNS label. Default: the file's name." example:"web"`
	Extends  *string               `toml:"extends" doc:"Profile that this one builds on: tables merge, arrays replace." example:"base.toml"`
	Machine  rawMachine            `toml:"machine" doc:"The virtual hardware, and who runs it."`
	Boot     rawBoot               `toml:"boot" doc:"What the guest starts from. Absent: the first disk, then the network."`
	Disks    []rawDisk             `toml:"disks" doc:"Disks, in the order in which the guest sees them."`
	NICs     []rawNIC              `toml:"nics" doc:"Network cards, in the order in which the guest sees them."`
	Networks map[string]rawNetwork `toml:"networks" doc:"Networks of this file, by name: a DNS label. Built in are nat, host-only and user."`
}

type rawMachine struct {
	CPUs     *int         `toml:"cpus" doc:"Number of virtual CPUs." min:"1" max:"1024" default:"1"`
	MaxCPUs  *int         `toml:"max_cpus" doc:"Number of virtual CPUs that the machine can be given while it runs. Default: cpus." min:"1" max:"1024"`
	Memory   *Size        `toml:"memory" doc:"Memory of the guest, with its unit: KiB MiB GiB TiB, or KB MB GB TB in powers of ten." example:"512MiB" default:"512MiB"`
	Accel    *Accel       `toml:"accel" doc:"What executes the guest's code. auto: KVM, else TCG with a warning." enum:"auto,kvm,tcg" default:"auto"`
	Type     *MachineType `toml:"type" doc:"QEMU's machine." enum:"q35,pc,microvm" default:"q35"`
	CPU      *string      `toml:"cpu" doc:"QEMU's CPU model." example:"max" default:"max"`
	Firmware *string      `toml:"firmware" doc:"Firmware of the machine." enum:"bios" later:"uefi" default:"bios"`
	Display  *Display     `toml:"display" doc:"What the machine's screen is seen through. none: there is no screen." enum:"none,vnc,spice" default:"none"`
	User     *string      `toml:"user" doc:"Whose process QEMU is. Another than the caller needs root." example:"vmuser"`
	Args     []string     `toml:"args" doc:"Appended to QEMU's command line as they are."`
}

type rawBoot struct {
	Kernel  *string  `toml:"kernel" doc:"Kernel image, or \"auto\" for the newest one of the host." example:"vmlinuz"`
	Initrd  *string  `toml:"initrd" doc:"Initial RAM disk, or \"micro\" for the built-in micro guest." example:"initrd.img"`
	Cmdline *string  `toml:"cmdline" doc:"Kernel command line. The console is added." example:"quiet"`
	Command []string `toml:"command" doc:"What the micro guest runs, instead of a shell."`
}

type rawDisk struct {
	Path   *string     `toml:"path" doc:"Image file." example:"data.qcow2"`
	Image  any         `toml:"image" later:"*"`
	Format *DiskFormat `toml:"format" doc:"Layout of the image file. auto: by its first bytes, or by the file's suffix if changes are kept." enum:"auto,qcow2,raw" default:"auto"`
	Size   *Size       `toml:"size" doc:"What the guest sees at least, with its unit." example:"10GiB"`
	Keep   *bool       `toml:"keep" doc:"Whether changes are written to the image file, or thrown away when the VM ends." default:"false"`
}

type rawNIC struct {
	Network *string  `toml:"network" doc:"Network of this file, or a built-in one: nat, host-only, user." example:"nat"`
	MAC     *string  `toml:"mac" doc:"MAC address. Default: derived from the VM's name." example:"52:54:00:aa:bb:cc"`
	IP      *string  `toml:"ip" doc:"Address that the network gives to this card." example:"10.70.0.10"`
	Forward []string `toml:"forward" doc:"Ports of the host that lead to the guest: [addr:]host:guest[/udp]." example:"8080:80"`
	Queues  *int     `toml:"queues" doc:"Number of queue pairs." min:"1" max:"256" default:"1"`
	Trunk   *bool    `toml:"trunk" doc:"Whether the guest may send tagged frames." default:"false"`
	Spoof   *bool    `toml:"spoof" doc:"Whether the guest may send from any MAC address." default:"false"`
}

type rawNetwork struct {
	Mode       *Mode       `toml:"mode" doc:"What the network is made of." enum:"nat,host-only,bridge,vlan,user"`
	Subnet     *string     `toml:"subnet" doc:"IPv4 subnet. Default for nat and host-only: a free one, chosen at launch." example:"10.70.0.0/24"`
	Address    *string     `toml:"address" doc:"The host's address. Default for nat and host-only: the subnet's first." example:"10.70.0.1/24"`
	Gateway    *string     `toml:"gateway" doc:"Router of the guests. Default: the host." example:"10.70.0.1"`
	Pool       *string     `toml:"pool" doc:"Addresses that guests get, first to last." example:"10.70.0.100-10.70.0.199"`
	DHCP       *bool       `toml:"dhcp" doc:"Whether vmrun serves DHCP. Default: true for nat, host-only, and a vlan with a subnet."`
	DNS        *bool       `toml:"dns" doc:"Whether vmrun serves DNS. Default: true where guests reach the host's services."`
	MTU        *int        `toml:"mtu" doc:"Largest packet in bytes. Default: the uplink's or the bridge's, else 1500." min:"576" max:"65535"`
	HostAccess *HostAccess `toml:"host_access" doc:"What guests reach on the host: services is DHCP, DNS and ping; none is DHCP alone. Default: services for nat, all for host-only; for a vlan none, or services where the host has an address." enum:"services,all,none"`
	Firewall   *Firewall   `toml:"firewall" doc:"What carries the network's rules." enum:"auto,nftables,iptables" default:"auto"`
	Shared     *bool       `toml:"shared" doc:"Whether this is one network for the whole host, whatever file names it." default:"false"`
	Bridge     *string     `toml:"bridge" doc:"Existing bridge to join." example:"br0"`
	Libvirt    *string     `toml:"libvirt" doc:"Network of libvirt's to join." example:"default"`
	Uplink     *string     `toml:"uplink" doc:"Physical interface: the VLAN's, or the one to make a bridge over." example:"eth1"`
	Takeover   *bool       `toml:"takeover" doc:"Whether the uplink may be one that the host itself uses: its addresses and routes move to the bridge, and back at the end. Default: false."`
	VLAN       *int        `toml:"vlan" doc:"VLAN number." min:"1" max:"4094" why:"0 means no VLAN and 4095 is reserved by IEEE 802.1Q"`
	Tenant     *string     `toml:"tenant" doc:"Whose network it is, for people." example:"acme"`
	Group      any         `toml:"group" later:"*"`
}
