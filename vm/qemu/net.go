package qemu

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// NIC is one virtio network card.
type NIC struct {
	MAC    net.HardwareAddr
	Netdev Netdev
	MTU    int // bytes, told to the guest; 0: the usual 1500
	Queues int // at least 1
}

// Netdev is the host's side of a NIC: a Tap or a UserNet.
type Netdev interface {
	netdev(id string) string
}

// Tap is an open TAP device with one file per queue. Whether frames carry a
// virtio header QEMU learns from the files.
type Tap struct {
	Queues []FD
}

func (t Tap) netdev(id string) string {
	fds := make([]string, len(t.Queues))
	for i, fd := range t.Queues {
		fds[i] = string(fd)
	}
	key := "fd"
	if len(fds) > 1 {
		key = "fds"
	}
	return option(pair{"", "tap"}, pair{"id", id}, pair{key, strings.Join(fds, ":")})
}

// UserNet is QEMU's user-mode network, which has QEMU's own addresses.
type UserNet struct {
	Hostname string // by DHCP
	Forward  []Forward
}

// Forward is a port of the host that leads to a port of the guest. Proto is
// tcp or udp, Host an IPv4 address.
type Forward struct {
	Proto string
	Host  netip.AddrPort
	Guest uint16
}

func (u UserNet) netdev(id string) string {
	pairs := slices.Concat([]pair{{"", "user"}, {"id", id}, {"ipv6", "off"}}, set("hostname", u.Hostname))
	for _, f := range u.Forward {
		pairs = append(pairs, pair{"hostfwd", fmt.Sprintf("%s:%s-:%d", f.Proto, f.Host, f.Guest)})
	}
	return option(pairs...)
}

func (c Config) nics() []string {
	var args []string
	for n, nic := range c.NICs {
		id := fmt.Sprintf("n%d", n)
		args = append(args, "-netdev", nic.Netdev.netdev(id))
		args = append(args, c.virtio("net",
			[]pair{{"netdev", id}, {"mac", nic.MAC.String()}},
			nic.mtu(), c.queues(nic), c.optionROM(), c.bootIndex(len(c.Disks)+n)).Args()...)
	}
	return args
}

func (n NIC) mtu() []pair {
	if n.MTU == 0 || n.MTU == 1500 {
		return nil
	}
	return []pair{{"host_mtu", strconv.Itoa(n.MTU)}}
}

// queues are the pairs of a multi-queue card. On PCI each queue has an
// interrupt for each direction, and two more are for configuration and control.
func (c Config) queues(n NIC) []pair {
	if n.Queues <= 1 {
		return nil
	}
	pairs := []pair{{"mq", "on"}}
	if c.Machine != MicroVM {
		pairs = append(pairs, pair{"vectors", strconv.Itoa(2*n.Queues + 2)})
	}
	return pairs
}

// optionROM leaves out the network boot code, which costs 200 ms, where
// nothing boots from the network.
func (c Config) optionROM() []pair {
	if c.firmwareBoot() || c.Machine == MicroVM {
		return nil
	}
	return []pair{{"romfile", ""}}
}
