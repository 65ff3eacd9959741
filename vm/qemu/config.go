// Package qemu builds QEMU's command line from a description of a virtual
// machine. It is pure: it opens nothing, runs nothing and knows nothing of the
// host. The options are those that x86-64 QEMU has had since 7.0.
package qemu

import (
	"fmt"
	"slices"
	"strconv"
)

// Machine types and accelerators, as QEMU calls them.
const (
	Q35     = "q35"
	PC      = "pc"
	MicroVM = "microvm"
	KVM     = "kvm"
	TCG     = "tcg"
)

// Port is a named virtio-serial port. Guests find it by its name.
type Port struct {
	ID   string // of the socket, for QEMU
	Name string // for the guest
	FD   FD     // connected socket
}

// FD is an open file that QEMU inherits, as it stands in an argument: its
// number in a launch, or any name in the text of a plan.
type FD string

// Config is one virtual machine. All files but the kernel, the initrd and the
// firmware are inherited.
type Config struct {
	Name     string // shown in process lists
	Machine  string // Q35, PC or MicroVM
	Accel    string // KVM or TCG
	CPU      string // a model, with features where wanted
	CPUs     int
	MaxCPUs  int    // that the guest can have while it runs; 0: CPUs
	Memory   int64  // bytes, rounded up to whole KiB
	Kernel   string // path; "": the firmware boots the disks in order, then the NICs
	Initrd   string // path, or ""
	Cmdline  string // of the kernel
	Disks    []Disk
	NICs     []NIC
	Console  FD       // connected socket: the first serial port
	QMP      FD       // connected socket: the monitor
	Ports    []Port   // virtio-serial ports
	Paused   bool     // the guest waits for the QMP command cont
	Display  string   // VNC, SPICE, or "" for a machine without a screen
	Incoming bool     // the guest waits for the QMP command migrate-incoming
	NoReboot bool     // a reset of the guest ends QEMU
	Extra    []string // appended as they are
}

// Args is the command line without the program's name.
func (c Config) Args() []string {
	return slices.Concat(
		[]string{"-no-user-config", "-nodefaults", "-display", "none"},
		c.display(),
		c.machine(),
		c.boot(),
		c.chardevs(),
		c.nics(),
		c.disks(),
		c.devices(),
		c.ports(),
		c.hotPorts(),
		c.life(),
		c.Extra,
	)
}

func (c Config) machine() []string {
	machine := []pair{{"", c.Machine}, {"accel", c.Accel}}
	switch c.Machine {
	case MicroVM:
		// With ACPI some boots hang, and without the clock Linux waits two
		// seconds for one.
		machine = append(machine, pair{"acpi", "off"}, pair{"rtc", "on"})
	default:
		machine = append(machine, pair{"usb", "off"}, pair{"vmport", "off"})
		if c.firmwareBoot() && c.Display == "" {
			// Firmware and boot loaders then talk on the serial port.
			machine = append(machine, pair{"graphics", "off"})
		}
	}
	return []string{
		"-name", option(pair{"guest", c.Name}, pair{"debug-threads", "on"}),
		"-machine", option(machine...),
		"-cpu", c.CPU,
		"-smp", c.cpus(),
		"-m", memory(c.Memory),
		"-rtc", option(pair{"base", "utc"}),
		"-sandbox", option(pair{"", "on"}, pair{"obsolete", "deny"}, pair{"elevateprivileges", "deny"},
			pair{"spawn", "deny"}, pair{"resourcecontrol", "deny"}),
	}
}

func (c Config) cpus() string {
	if c.MaxCPUs <= c.CPUs {
		return strconv.Itoa(c.CPUs)
	}
	return option(pair{"cpus", strconv.Itoa(c.CPUs)}, pair{"maxcpus", strconv.Itoa(c.MaxCPUs)})
}

// memory is an amount for -m: in MiB where that is exact, as people say it.
func memory(bytes int64) string {
	const kib, mib = 1 << 10, 1 << 20
	if bytes%mib == 0 {
		return fmt.Sprintf("%dM", bytes/mib)
	}
	return fmt.Sprintf("%dK", (bytes+kib-1)/kib)
}

func (c Config) firmwareBoot() bool { return c.Kernel == "" }

// boot names the kernel. These arguments are whole values to QEMU, not
// options: nothing in them is escaped.
func (c Config) boot() []string {
	if c.firmwareBoot() {
		return []string{"-boot", option(pair{"strict", "on"})}
	}
	args := []string{"-kernel", c.Kernel}
	if c.Initrd != "" {
		args = append(args, "-initrd", c.Initrd)
	}
	if c.Cmdline != "" {
		args = append(args, "-append", c.Cmdline)
	}
	return args
}

func (c Config) life() []string {
	args := []string{"-action", option(pair{"panic", "shutdown"})}
	if c.NoReboot {
		args = append(args, "-no-reboot")
	}
	if c.Paused {
		args = append(args, "-S")
	}
	if c.Incoming {
		args = append(args, "-incoming", "defer")
	}
	return args
}
