package vm

import (
	"fmt"
	"net/netip"

	"github.com/vmrun/vmrun/images"
	"github.com/vmrun/vmrun/images/guest"
	"github.com/vmrun/vmrun/vm/agent"
	"github.com/vmrun/vmrun/vm/qemu"
)

// settings are what a launch finds out after the plan was made.
type settings struct {
	accel  string
	kernel string
	initrd string
	disks  [][]images.Layer
	mtus   []int // by NIC, bytes; 0: the usual
	fd     func(name string) qemu.FD
}

// Command is the QEMU command line that a launch of the plan uses. What only
// the launch can know stands in braces: an inherited descriptor by its name,
// the path of the micro guest, the format of an image.
func (plan *Plan) Command(h Host) []string {
	s := settings{
		accel: plan.Accel, kernel: plan.Kernel, initrd: plan.Initrd,
		fd: func(name string) qemu.FD { return qemu.FD("{" + name + "}") },
	}
	if plan.Micro != nil {
		s.initrd = "{micro}"
	}
	for i, d := range plan.Disks {
		s.disks = append(s.disks, plannedLayers(i, d))
	}
	for _, nic := range plan.NICs {
		mtu := 0
		if nic.Spec != nil {
			mtu = nic.Spec.MTU
		}
		s.mtus = append(s.mtus, mtu)
	}
	return append([]string{h.QEMU}, plan.config(s).Args()...)
}

// plannedLayers are a disk's as far as they are known before it is opened.
func plannedLayers(index int, d images.DiskSpec) []images.Layer {
	format := d.Format
	if format == images.FormatAuto {
		format = images.Format(fmt.Sprintf("{disk%d.format}", index))
	}
	layers := []images.Layer{{Format: format, ReadOnly: !d.Keep}}
	if !d.Keep {
		layers = append([]images.Layer{{Format: images.FormatQCOW2}}, layers...)
	}
	return layers
}

// config describes the virtual machine to QEMU.
func (plan *Plan) config(s settings) qemu.Config {
	c := qemu.Config{
		Name: plan.Name, Machine: plan.Machine, Accel: s.accel, CPU: plan.CPU, CPUs: plan.CPUs, MaxCPUs: plan.MaxCPUs, Memory: plan.Memory,
		Kernel: s.kernel, Initrd: s.initrd, Cmdline: plan.Cmdline,
		Console: s.fd(fdConsole), QMP: s.fd(fdQMP),
		// The guest begins when all is ready to see what it does.
		Paused:   true,
		NoReboot: plan.noReboot(),
		Incoming: plan.Restore != nil,
		Display:  plan.Display,
		Extra:    plan.Args,
	}
	if s.accel == qemu.TCG {
		c.CPU = tcgCPU(plan.CPU)
	}
	for _, p := range plan.ports() {
		c.Ports = append(c.Ports, qemu.Port{ID: p.fd, Name: p.name, FD: s.fd(p.fd)})
	}
	for i, layers := range s.disks {
		disk := qemu.Disk{Throwaway: !plan.Disks[i].Keep}
		for j, l := range layers {
			disk.Layers = append(disk.Layers, qemu.Image{FD: s.fd(fdDisk(i, j)), Format: string(l.Format), Device: l.Device})
		}
		c.Disks = append(c.Disks, disk)
	}
	for i, nic := range plan.NICs {
		c.NICs = append(c.NICs, qemu.NIC{
			MAC: nic.MAC.HardwareAddr(), MTU: s.mtus[i], Queues: nic.Queues, Netdev: plan.netdev(i, s.fd),
		})
	}
	return c
}

// guestPort is a virtio-serial port, by the descriptor and by the guest's name
// for it.
type guestPort struct{ fd, name string }

// ports are those by which the guest is spoken with: an agent's each, and the
// one by which the micro guest tells its command's exit code.
func (plan *Plan) ports() []guestPort {
	own := guestPort{fdAgent, agent.VMRunPort}
	if plan.Micro != nil {
		return []guestPort{{fdExit, guest.ExitPort}, own}
	}
	return []guestPort{own, {fdQGA, agent.QGAPort}}
}

// noReboot is for guests that never reboot in order. The micro guest does so
// only when it panics; a microvm has no other way to power off.
func (plan *Plan) noReboot() bool { return plan.Micro != nil || plan.Machine == qemu.MicroVM }

// endsWithGuest tells that QEMU ends once it has told of a SHUTDOWN. Arguments
// of the profile's own may have it stay, and the guest go on (QEMU's option
// -action).
func (plan *Plan) endsWithGuest() bool { return len(plan.Args) == 0 }

func (plan *Plan) netdev(index int, fd func(string) qemu.FD) qemu.Netdev {
	nic := plan.NICs[index]
	if nic.Spec == nil {
		user := qemu.UserNet{Hostname: plan.Name}
		for _, f := range nic.Forwards {
			host := netip.AddrPortFrom(f.HostAddr, f.HostPort)
			user.Forward = append(user.Forward, qemu.Forward{Proto: f.Proto, Host: host, Guest: f.GuestPort})
		}
		return user
	}
	var tap qemu.Tap
	for queue := range nic.Queues {
		tap.Queues = append(tap.Queues, fd(fdQueue(index, queue)))
	}
	return tap
}

// Names of the descriptors that QEMU inherits besides the standard ones.
const (
	fdConsole = "console"
	fdQMP     = "qmp"
	fdExit    = "exit"
	fdAgent   = "agent"
	fdQGA     = "qga"
	fdKernel  = "kernel"
	fdInitrd  = "initrd"
)

func fdQueue(nic, queue int) string { return fmt.Sprintf("nic%d.queue%d", nic, queue) }

// fdDisk is the name of a layer of a disk, counted from what the guest writes to.
func fdDisk(disk, layer int) string {
	if layer == 0 {
		return fmt.Sprintf("disk%d", disk)
	}
	return fmt.Sprintf("disk%d.base%d", disk, layer)
}
