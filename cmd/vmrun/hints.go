package main

import (
	"slices"

	"github.com/vmrun/vmrun/images"
	"github.com/vmrun/vmrun/netsetup"
	"github.com/vmrun/vmrun/vm"
)

const installKernel = "apt-get install " + images.KernelPackage + `, or name a kernel in the profile: kernel = "…"`

// needHints say what to do about what a host lacks for a VM.
var needHints = map[vm.Need]string{
	vm.NeedQEMU:      "apt-get install qemu-system-x86",
	vm.NeedQEMUImg:   "apt-get install qemu-utils",
	vm.NeedPrivilege: "run vmrun with sudo, or use mode user, which needs no privilege, or ask root to open the network: vmrun net up FILE --group GROUP",
	vm.NeedKVM:       `use accel = "auto" or "tcg", or see vmrun doctor`,
	vm.NeedKernel:    installKernel,
	vm.NeedPort:      `name another port in the profile: forward = ["…"]`,
	vm.NeedName:      `end the other one, or give this one a name of its own: --name, or name = "…" in the profile`,
	vm.NeedRemoval:   "vmrun rm forgets the other one; --name gives this one a name of its own",
}

// featureHints say what to do about what a host lacks for a network.
var featureHints = map[string]string{
	"bridge":   "end the VMs on it (vmrun net inspect names them), and vmrun net down NAME if it is held: it comes up anew with the next VM",
	"8021q":    "use a kernel with CONFIG_VLAN_8021Q",
	"cls_bpf":  "use a kernel with CONFIG_NET_CLS_BPF",
	"libvirt":  "start libvirtd (apt-get install libvirt-daemon-system; systemctl start libvirtd), or use mode nat",
	"iptables": "apt-get install iptables; where it is installed, see vmrun doctor",
	"nftables": `firewall = "auto" takes iptables where nftables does not work; see vmrun doctor`,
	"tun":      "modprobe tun; in a container, pass --device /dev/net/tun",
}

// hints say what to do about all that is in an error's tree; there are none
// where that is anybody's guess.
func hints(err error) []string {
	var all []string
	walk(err, func(e error) {
		if h := hint(e); h != "" && !slices.Contains(all, h) {
			all = append(all, h)
		}
	})
	return all
}

// hint is about one error and not about those that it wraps.
func hint(err error) string {
	if err == images.ErrNotStatic {
		return "build vmrun with CGO_ENABLED=0 (make build)" // a busybox that is not static is never taken
	}
	switch e := err.(type) {
	case usageError:
		return e.command + " --help"
	case teardownError:
		return "vmrun gc removes what is left"
	case *vm.HostError:
		return needHints[e.Need]
	case *vm.UnknownError:
		if rootsVMsRun() {
			return "root's VMs are only root's to reach: sudo vmrun …"
		}
	case *netsetup.BusyError:
		return "it goes down with the last of them; vmrun stop ends one"
	case *netsetup.ElsewhereError:
		return elsewhereHint(e)
	case *netsetup.MissingError:
		return featureHints[e.Feature]
	}
	return ""
}

// elsewhereHint says how to get to a network of another network namespace.
func elsewhereHint(e *netsetup.ElsewhereError) string {
	const who = "(lsns --type net tells who is in it)"
	const own = "; VMRUN_RUNTIME_DIR gives this one networks of its own"
	switch {
	case e.Journal != "" && e.Way != "":
		return "nsenter --net=" + e.Way + " vmrun gc" + own
	case e.Journal != "":
		return "run vmrun gc in that namespace " + who + "; if it is gone, with all that was in it, rm " + e.Journal
	case e.Way != "":
		return "nsenter --net=" + e.Way + " enters that namespace" + own
	}
	return "enter that namespace " + who + own
}

// walk visits an error and all that it wraps.
func walk(err error, visit func(error)) {
	if err == nil {
		return
	}
	visit(err)
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		walk(e.Unwrap(), visit)
	case interface{ Unwrap() []error }:
		for _, wrapped := range e.Unwrap() {
			walk(wrapped, visit)
		}
	}
}
