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
	vm.NeedPrivilege: "run vmrun with sudo, or use mode user, which needs no privilege",
	vm.NeedKVM:       `use accel = "auto" or "tcg", or see vmrun doctor`,
	vm.NeedKernel:    installKernel,
	vm.NeedPort:      `name another port in the profile: forward = ["…"]`,
	vm.NeedName:      `end the other one, or give this one a name of its own: name = "…"`,
}

// featureHints say what to do about what a host lacks for a network.
var featureHints = map[string]string{
	"8021q":    "use a kernel with CONFIG_VLAN_8021Q",
	"cls_bpf":  "use a kernel with CONFIG_NET_CLS_BPF",
	"iptables": "apt-get install iptables; where it is installed, see vmrun doctor",
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
	case *netsetup.MissingError:
		return featureHints[e.Feature]
	}
	return ""
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
