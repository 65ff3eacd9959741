package integration

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
	"github.com/vmrun/vmrun/integration/internal/world"
)

const libvirtLAN = `
[[nics]]
network = "lan"
forward = ["%d:80"]

[networks.lan]
mode = "bridge"
libvirt = "default"
`

var libvirtFeatures = append(bootFeatures, "tun", "libvirt", "iptables")

// newLibvirtHost is a host with libvirt's default network, which was active once:
// libvirt's own chains stay from then on.
func newLibvirtHost(t *testing.T) (*host, *world.Libvirt) {
	t.Helper()
	feature.Needs(t, libvirtFeatures...)
	h := newHost(t)
	return h, serveLibvirt(t)
}

// serveLibvirt makes the sandbox such a host.
func serveLibvirt(t *testing.T) *world.Libvirt {
	t.Helper()
	l := world.ServeLibvirt(t)
	l.Define(t, "default", "virbr0", "192.168.122")
	l.Virsh(t, "net-start", "default")
	l.Virsh(t, "net-destroy", "default")
	useChains(t)
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	return l
}

// useChains has iptables make the chains of the kernel's that it makes at their
// first use and never takes away.
func useChains(t *testing.T) {
	t.Helper()
	for table, chains := range map[string][]string{"filter": {"INPUT", "FORWARD"}, "nat": {"PREROUTING", "POSTROUTING"}} {
		for _, chain := range chains {
			restoreRules(t, fmt.Sprintf("*%s\n-A %s -j ACCEPT\n-D %[2]s -j ACCEPT\nCOMMIT\n", table, chain))
		}
	}
}

// runOnLibvirt boots a VM that serves HTTP, also by a port of the host, and
// returns its address, of which vmrun has told as well.
func runOnLibvirt(t *testing.T, h *host, name string, port int) (*machine, string) {
	t.Helper()
	vm := h.run(t, writeProfile(t, t.TempDir(), name, fmt.Sprintf(libvirtLAN, port)+micro(t, serveScript)))
	lease := vm.expect(t, `vmrun-guest: eth0 52:54:00:\S+ (192\.168\.122\.\d+)/24 gw 192\.168\.122\.1\b`)
	vm.expect(t, `serving\n`)
	told := vm.tells(t, name+`: the guest has an address network=lan ip=(\S+)`)
	if told[1] != lease[1] {
		t.Errorf("vmrun says that the address is %s; the guest has %s", told[1], lease[1])
	}
	for _, address := range []string{lease[1], fmt.Sprintf("127.0.0.1:%d", port)} {
		if err := reaches(t, h.Namespace, address); err != nil {
			t.Errorf("the host does not reach the guest at %s: %v", address, err)
		}
	}
	return vm, lease[1]
}

// A network of libvirt's that is not active is started by the first VM and
// stopped by the last one, whichever network of vmrun's it came by.
func TestLibvirtStarts(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		h, l := newLibvirtHost(t)
		before := h.state(t)
		first, _ := runOnLibvirt(t, h, "first", 8081)
		second, address := runOnLibvirt(t, h, "second", 8082)
		first.say(t, "")
		first.ends(t, 0)
		if err := reaches(t, h.Namespace, address); err != nil {
			t.Errorf("the second guest is cut off by the first one's end: %v", err)
		}
		second.say(t, "")
		second.ends(t, 0)
		if l.Active(t, "default") {
			t.Error("libvirt's network is still active")
		}
		h.restored(t, before)
	})
}

// One that is active stays so, and so do the ports that others have on it.
func TestLibvirtJoins(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		h, l := newLibvirtHost(t)
		l.Virsh(t, "net-start", "default")
		addPort(t, h, "vnet0", "virbr0")
		before := h.state(t)
		vm, _ := runOnLibvirt(t, h, "web", 8080)
		vm.say(t, "")
		vm.ends(t, 0)
		h.restored(t, before)
	})
}

// All of vmrun is killed at once: gc stops the network.
func TestLibvirtKilled(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		h, l := newLibvirtHost(t)
		before := h.state(t)
		runOnLibvirt(t, h, "web", 8080)
		kill(t, unix.SIGKILL, "vmrun keeper", "vmrun run", "qemu-system")
		h.eventually(t, "QEMU's end", func() bool { return h.ownLinks(t) == "" })
		if !l.Active(t, "default") {
			t.Fatal("the network ended with its keeper: there is nothing to test")
		}
		code, output := h.vmrun(t, "gc")
		if code != 0 {
			t.Errorf("gc ends with %d: %s", code, output)
		}
		h.restored(t, before)
	})
}

// A libvirtd that does not run, or does not answer, is named to whoever asks for
// it, and holds up nobody else.
func TestLibvirtAbsent(t *testing.T) {
	beside(t)
	for _, day := range []struct {
		name        string
		spoil, heal func(*testing.T, *world.Libvirt)
		says        string
	}{
		{"killed", func(t *testing.T, l *world.Libvirt) { l.Signal(t, unix.SIGKILL) }, func(*testing.T, *world.Libvirt) {}, `no libvirt daemon listens`},
		{"hangs", func(t *testing.T, l *world.Libvirt) { l.Signal(t, unix.SIGSTOP) }, func(t *testing.T, l *world.Libvirt) {
			l.Signal(t, unix.SIGCONT)
			l.Active(t, "default") // what waited before this question has been seen to
		}, `libvirt at \S+ does not answer`},
	} {
		t.Run(day.name, func(t *testing.T) {
			sandbox.Run(t, func(t *testing.T) {
				h, l := newLibvirtHost(t)
				day.spoil(t, l)
				before := h.state(t)
				vm := h.run(t, writeProfile(t, t.TempDir(), "web", fmt.Sprintf(libvirtLAN, 8080)+micro(t, "true")))
				vm.ends(t, 3)
				vm.tells(t, day.says)
				vm.tells(t, `hint: start libvirtd`)

				vm = h.run(t, writeProfile(t, t.TempDir(), "web", natLAN+micro(t, "true")))
				vm.expect(t, `eth0 \S+ 10\.70\.0\.\d+/24`)
				vm.ends(t, 0)
				day.heal(t, l)
				h.restored(t, before)
			})
		})
	}
}

// A network that libvirt does not know is refused, and those that it has are
// named.
func TestLibvirtUnknown(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		h, l := newLibvirtHost(t)
		l.Virsh(t, "net-undefine", "default")
		l.Define(t, "lab", "virbr1", "192.168.123")
		before := h.state(t)
		vm := h.run(t, writeProfile(t, t.TempDir(), "web", fmt.Sprintf(libvirtLAN, 8080)+micro(t, "true")))
		vm.ends(t, 3)
		vm.tells(t, `no network "default"; libvirt has lab`)
		h.restored(t, before)
	})
}

// addPort puts a stranger's link into a bridge.
func addPort(t *testing.T, h *host, name, bridge string) {
	t.Helper()
	link := addLink(t, h, name)
	master, err := h.Links().LinkByName(bridge)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Links().LinkSetMaster(link, master); err != nil {
		t.Fatal(err)
	}
	if err := h.Links().LinkSetLearning(link, false); err != nil { // its peer speaks up some time
		t.Fatal(err)
	}
	world.Settle(t, h.Namespace, bridge)
}

// The ranges of libvirt's networks are taken, also where the network is not
// active and nothing on the host shows them.
func TestLibvirtRanges(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		h, l := newLibvirtHost(t)
		subnet := func(profile string, code int, says string) string {
			t.Helper()
			vm := h.start(t, h.command(t, "plan", writeProfile(t, t.TempDir(), "web", profile+micro(t, "true"))))
			vm.ends(t, code)
			if says != "" {
				vm.tells(t, says)
				return ""
			}
			return vm.expect(t, `network \S+: bridge vmr\S+, (\S+)\.0/24`)[1]
		}
		const automatic = "[[nics]]\nnetwork = \"nat\"\n"
		free := subnet(automatic, 0, "")
		subnet(natLAN, 0, "")
		l.Define(t, "office", "virbr1", "10.70.0")
		l.Define(t, "lab", "virbr2", free)
		subnet(natLAN, 1, `subnet: 10\.70\.0\.0/24 is taken: libvirt's network office has 10\.70\.0\.0/24`)
		next := subnet(automatic, 0, "")
		if next == free {
			t.Errorf("%s.0/24 was chosen, which is libvirt's", next)
		}
		l.Virsh(t, "net-undefine", "lab")
		l.Virsh(t, "net-undefine", "office")
		subnet(natLAN, 0, "")
		if again := subnet(automatic, 0, ""); again != free {
			t.Errorf("%s.0/24 was chosen, and %s.0/24 is free again", again, free)
		}
	})
}
