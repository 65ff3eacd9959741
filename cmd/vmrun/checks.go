package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
)

// check looks at one thing that running VMs depends on.
type check struct {
	name   string
	needed bool
	run    func(context.Context, probe) finding
}

// checks are in the order in which they are reported.
var checks = []check{
	{"privilege", true, checkPrivilege},
	{"kvm", false, checkKVM},
	{"tun", true, checkTUN},
	{"8021q", false, check8021Q},
	{"cls_bpf", true, checkTagGuard},
	{"firewall", true, checkFirewall},
	{"qemu", true, checkQEMU},
	{"qemu-img", false, checkQEMUImg},
	{"kernel", true, checkKernel},
	{"busybox", false, checkBusybox},
	{"forwarding", false, checkForwarding},
	{"filters", false, checkFilters},
	{"br_netfilter", false, checkBridgeNetfilter},
	{"libvirt", false, checkLibvirt},
	{"resolver", false, checkResolver},
	{"subnet", true, checkSubnet},
}

func good(format string, args ...any) finding {
	return finding{Status: statusOK, Found: fmt.Sprintf(format, args...)}
}

func warning(found, do string) finding {
	return finding{Status: statusWarning, Found: found, Do: do}
}

func missing(found, do string) finding {
	return finding{Status: statusMissing, Found: found, Do: do}
}

func checkPrivilege(_ context.Context, p probe) finding {
	if p.host.Privileged {
		return good("may set up networks")
	}
	return missing("may not set up networks (no CAP_NET_ADMIN)", "run vmrun with sudo, or use mode user, which needs no privilege")
}

func checkKVM(_ context.Context, p probe) finding {
	switch err := p.opens("/dev/kvm"); {
	case err == nil:
		return good("/dev/kvm opens; whether it runs guests shows when one starts")
	case errors.Is(err, fs.ErrPermission):
		return warning(err.Error(), "add yourself to the group kvm; until then guests run under TCG, many times slower")
	default:
		return warning(err.Error(), "switch virtualization on in the firmware or the hypervisor; until then guests run under TCG, many times slower")
	}
}

func checkTUN(_ context.Context, p probe) finding {
	switch err := p.opens("/dev/net/tun"); {
	case err == nil:
		return good("/dev/net/tun opens")
	case errors.Is(err, fs.ErrPermission):
		return missing(err.Error(), "run vmrun with sudo")
	default:
		return missing(err.Error(), "load the module (modprobe tun); in a container, pass --device /dev/net/tun")
	}
}

func check8021Q(_ context.Context, p probe) finding {
	if _, err := os.Stat(p.path("/proc/net/vlan")); err == nil {
		return good("in the running kernel")
	}
	if where, _ := p.module("8021q"); where != "" {
		return good("%s", where)
	}
	return missing("not in this kernel", "networks of mode vlan need a kernel with CONFIG_VLAN_8021Q; the other modes don't")
}

// checkTagGuard looks for what drops tagged frames and foreign MACs of guests.
func checkTagGuard(_ context.Context, p probe) finding {
	where, known := p.module("cls_bpf")
	switch {
	case where != "":
		return good("%s", where)
	case known:
		return missing("not in this kernel", "networks need a kernel with CONFIG_NET_CLS_BPF, which drops guests' forged frames")
	}
	return good("unknown: this kernel's modules are not listed; shows when a VM joins a network")
}

// module says where the kernel has a module; known tells whether there are
// lists to look it up in.
func (p probe) module(name string) (where string, known bool) {
	dir := "/lib/modules/" + p.release() + "/"
	builtin, err := p.lists(dir+"modules.builtin", name)
	loadable, err2 := p.lists(dir+"modules.dep", name)
	switch {
	case builtin:
		return "built into the kernel", true
	case loadable:
		return "a module, loaded when it is needed", true
	}
	return "", err == nil && err2 == nil
}

// release is the running kernel's version.
func (p probe) release() string { return p.read("/proc/sys/kernel/osrelease") }

// lists tells whether a line of file names the module.
func (p probe) lists(file, module string) (bool, error) {
	f, err := os.Open(p.path(file))
	if err != nil {
		return false, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, _, _ := strings.Cut(lines.Text(), ":")
		name, _, _ = strings.Cut(path.Base(name), ".")
		if name == module {
			return true, nil
		}
	}
	return false, lines.Err()
}

func checkQEMU(ctx context.Context, p probe) finding {
	return p.program(ctx, p.host.QEMU, missing("qemu-system-x86_64 is not installed", "apt-get install qemu-system-x86"))
}

func checkQEMUImg(ctx context.Context, p probe) finding {
	return p.program(ctx, p.host.QEMUImg, warning("qemu-img is not installed", "apt-get install qemu-utils; guests with disks need it"))
}

// program asks a program for its version; absent is what its absence means.
func (p probe) program(ctx context.Context, path string, absent finding) finding {
	if path == "" {
		return absent
	}
	line, err := p.firstLine(ctx, path, "--version")
	if err != nil {
		absent.Found = err.Error()
		return absent
	}
	return good("%s (%s)", line, path)
}

func checkKernel(_ context.Context, p probe) finding {
	if p.host.Kernel == "" {
		return missing("none in "+strings.Join(p.host.KernelDirs, ", "), installKernel)
	}
	return good("%s", p.host.Kernel)
}

func checkBusybox(_ context.Context, p probe) finding {
	if p.host.Busybox == "" {
		return warning("no static busybox", "apt-get install busybox-static; without it the micro guest has no shell")
	}
	return good("%s", p.host.Busybox)
}
