// Package vm launches a virtual machine from a profile and sees it through to
// its end.
//
// NewPlan turns a profile and facts about the host into a Plan; it is pure.
// Launch carries a plan out and returns a running Instance, whose Close undoes
// all that Launch did. When the process that launched it dies, QEMU is killed
// by the kernel, and the networks and files go with their descriptors.
package vm

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vmrun/vmrun/images"
	"github.com/vmrun/vmrun/netsetup"
	"github.com/vmrun/vmrun/profiles"
	"github.com/vmrun/vmrun/vm/qemu"
)

// Plan is a launch before it happens. The same profile on the same host gives
// the same plan.
type Plan struct {
	Name    string `json:"name"`    // DNS label
	Profile string `json:"profile"` // path

	Machine  string   `json:"machine"`
	CPU      string   `json:"cpu"`
	CPUs     int      `json:"cpus"`
	MaxCPUs  int      `json:"max_cpus"`
	Memory   int64    `json:"memory"` // bytes
	Accel    string   `json:"accel"`  // kvm or tcg
	Fallback bool     `json:"fallback,omitempty"`
	Display  string   `json:"display,omitempty"` // vnc or spice; "": no screen
	User     User     `json:"user"`              // whose process QEMU is
	Args     []string `json:"args,omitempty"`

	Kernel  string            `json:"kernel,omitempty"` // "": firmware boot
	Initrd  string            `json:"initrd,omitempty"`
	Micro   *images.MicroSpec `json:"micro,omitempty"` // the initrd is to be made; Initrd is empty
	Cmdline string            `json:"cmdline,omitempty"`

	Disks []images.DiskSpec `json:"disks,omitempty"`
	NICs  []NIC             `json:"nics,omitempty"`

	// Networks are the profile's, of which a running machine can get more cards.
	Networks map[string]profiles.Network `json:"networks,omitempty"`

	Warnings []string `json:"warnings,omitempty"` // for people

	Restore *Restore `json:"restore,omitempty"` // nil: the machine boots

	// NeedsRoot says, for people, what this process lacks the privilege for.
	// Check and Launch refuse a plan that has any.
	NeedsRoot []string `json:"needs_root,omitempty"`
}

// NIC is a network card and the port that it gets: on a network of netsetup,
// or in user mode.
type NIC struct {
	Network  string             `json:"network"`
	Mode     profiles.Mode      `json:"mode"`
	MAC      netsetup.MAC       `json:"mac"`
	Spec     *netsetup.Spec     `json:"spec,omitempty"` // nil: user mode
	Port     *netsetup.PortSpec `json:"port,omitempty"` // nil: user mode
	Queues   int                `json:"queues"`
	Forwards []profiles.Forward `json:"forwards,omitempty"`
}

// NewPlan plans the launch of a profile on a host. It opens no file and changes
// nothing. All that stands in the way is in one error; what the host lacks is
// in it as *HostError. A lack of privilege alone is no error here: what would
// be done is known without.
func NewPlan(p *profiles.Profile, h Host) (*Plan, error) {
	plan := &Plan{
		Name: p.Name, Profile: p.File,
		Machine: string(p.Machine.Type), CPU: p.Machine.CPU, CPUs: p.Machine.CPUs, MaxCPUs: max(p.Machine.CPUs, p.Machine.MaxCPUs),
		Memory: int64(p.Machine.Memory), Args: p.Machine.Args, Networks: p.Networks,
	}
	if p.Machine.Display != profiles.DisplayNone {
		plan.Display = string(p.Machine.Display)
	}
	err := errors.Join(
		plan.planUser(p.Machine, h),
		plan.planAccel(p.Machine, h),
		plan.planBoot(p, h),
		plan.planDisks(p.Disks, h),
		plan.planNICs(p, h),
	)
	if h.QEMU == "" {
		err = errors.Join(lacks(NeedQEMU, "find QEMU: no qemu-system-x86_64 in PATH"), err)
	}
	if err != nil {
		return nil, err
	}
	return plan, nil
}

func (plan *Plan) planUser(m profiles.Machine, h Host) error {
	plan.User = h.User
	if m.User != "" {
		u, err := h.LookupUser(m.User)
		if err != nil {
			return lacks(NeedUser, "look up machine.user %q: %w", m.User, err)
		}
		plan.User = u
	}
	switch {
	case h.EUID != 0 && plan.User.UID != uint32(h.EUID):
		plan.needRoot(fmt.Sprintf("run QEMU as user %s: only root can", plan.User.Name))
	case plan.User.UID == 0 && m.User == "":
		plan.warn("QEMU runs as root: nothing says whose it is (machine.user, or sudo)")
	}
	plan.User = h.runAs(plan.User)
	return nil
}

func (plan *Plan) planAccel(m profiles.Machine, h Host) error {
	usable := h.KVM.usableBy(plan.User)
	plan.Accel = qemu.KVM
	switch {
	case m.Accel == profiles.AccelKVM && !usable:
		return lacks(NeedKVM, "use KVM: %s", h.KVM.lack(plan.User))
	case m.Accel == profiles.AccelAuto && usable:
		plan.Fallback = true
	case m.Accel == profiles.AccelAuto:
		plan.warn("no KVM, so the guest runs many times slower: " + h.KVM.lack(plan.User))
		fallthrough
	case m.Accel == profiles.AccelTCG:
		plan.Accel = qemu.TCG
	}
	return nil
}

// lack says why a user can't have the device.
func (d Device) lack(u User) string {
	if !d.exists() {
		return "this host has no /dev/kvm"
	}
	return fmt.Sprintf("user %s may not open %s (mode %04o, group %d)", u.Name, d.Path, d.Mode.Perm(), d.GID)
}

// The kernel talks on the serial port. The micro guest is quiet about itself,
// ends when it panics, does not look for what QEMU's machines lack, and does not
// test a timer that works: under TCG on a busy host the test finds it broken
// (kernel-parameters.txt, no_timer_check), and such a guest may hang.
const (
	consoleArgs = "console=ttyS0" // the last one is what init gets
	screenArgs  = "console=tty0"
	microArgs   = "quiet panic=-1 no_timer_check i8042.noaux i8042.nomux i8042.dumbkbd cryptomgr.notests random.trust_cpu=on"
	microVMArgs = "reboot=t" // without ACPI, a triple fault is all that resets the machine
)

func (plan *Plan) planBoot(p *profiles.Profile, h Host) error {
	plan.Kernel, plan.Initrd = p.Boot.Kernel, p.Boot.Initrd
	if p.Boot.Kernel == "" {
		return nil
	}
	if p.Boot.Kernel == profiles.KernelAuto {
		if h.Kernel == "" {
			return &HostError{Need: NeedKernel, Err: &images.NoKernelError{Dirs: h.KernelDirs}}
		}
		plan.Kernel = h.Kernel
	}
	words := []string{consoleArgs}
	if plan.Display != "" {
		words = []string{screenArgs, consoleArgs}
	}
	if p.Boot.Initrd == profiles.InitrdMicro {
		words = append(words, microArgs)
		plan.Initrd = ""
		plan.Micro = &images.MicroSpec{Kernel: plan.Kernel, Init: h.Executable, Busybox: h.Busybox, Command: p.Boot.Command}
	}
	if plan.Machine == qemu.MicroVM {
		words = append(words, microVMArgs)
		plan.warn("a microvm's devices are found only by kernels with CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES")
	}
	if p.Boot.Cmdline != "" {
		words = append(words, p.Boot.Cmdline)
	}
	plan.Cmdline = strings.Join(words, " ")
	return nil
}

func (plan *Plan) planDisks(disks []profiles.Disk, h Host) error {
	for _, d := range disks {
		if h.QEMUImg == "" && (!d.Keep || d.Size > 0) {
			return lacks(NeedQEMUImg, "prepare disk %s: no qemu-img in PATH", d.Path)
		}
		plan.Disks = append(plan.Disks, images.DiskSpec{
			Path: d.Path, Format: images.Format(d.Format), Size: int64(d.Size), Keep: d.Keep,
		})
	}
	return nil
}

func (plan *Plan) planNICs(p *profiles.Profile, h Host) error {
	var errs []error
	for i, n := range p.NICs {
		network := p.Networks[n.Network]
		nic, err := newNIC(p.Name, i, n, network, h)
		errs = append(errs, err)
		plan.NICs = append(plan.NICs, nic)
		if nic.Spec != nil {
			if err := h.mayUse(network, *nic.Spec); err != nil {
				plan.needRoot(err.Error())
			}
		}
	}
	if plan.Micro != nil && len(plan.NICs) > 0 && !slices.ContainsFunc(plan.NICs, NIC.mayGetLease) {
		plan.Micro.LeaseTimeout = noLeaseTimeout
	}
	return errors.Join(errs...)
}

// noLeaseTimeout is how long a micro guest looks for leases where nobody is
// known to give any.
const noLeaseTimeout = time.Second

// needRoot notes once what takes privilege: several NICs may be on one network.
func (plan *Plan) needRoot(what string) {
	if !slices.Contains(plan.NeedsRoot, what) {
		plan.NeedsRoot = append(plan.NeedsRoot, what)
	}
}

func (plan *Plan) warn(text string) { plan.Warnings = append(plan.Warnings, text) }

// tcgCPU is the CPU model where there is no KVM, which host needs.
func tcgCPU(model string) string {
	if model == "host" {
		return "max"
	}
	return cmp.Or(model, "max")
}
