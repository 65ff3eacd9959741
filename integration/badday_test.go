package integration

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
	"github.com/vmrun/vmrun/integration/internal/world"
)

// badDay is a launch that can't succeed: it must say why, end with the code,
// and leave the host alone.
type badDay struct {
	name    string
	network string                  // of the profile, the NIC's included; "": natLAN
	boot    string                  // "": a micro guest
	prepare func(*testing.T, *host) // makes the day bad
	code    int
	says    string
}

func bridgeOver(uplink string) string {
	return "[[nics]]\nnetwork = \"lan\"\n[networks.lan]\nmode = \"bridge\"\nuplink = \"" + uplink + "\"\n"
}

var badDays = []badDay{
	{name: "no qemu", code: 3, says: `qemu-system-x86`, prepare: hide("qemu-system-x86_64")},
	{name: "no iptables", code: 3, says: `iptables`, prepare: hide("iptables", "iptables-legacy"),
		network: strings.Replace(natLAN, "mode =", "firewall = \"iptables\"\nmode =", 1)},
	{name: "no tun", code: 3, says: `/dev/net/tun`, prepare: func(t *testing.T, _ *host) {
		if err := unix.Mount("tmpfs", "/dev/net", "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
	}},
	{name: "subnet is an interface's", code: 3, says: `10\.70\.0\.0/24.*(eth9)`, prepare: func(t *testing.T, h *host) {
		addLink(t, h, "eth9", "10.70.0.77/16")
	}},
	{name: "subnet is routed", code: 3, says: `10\.70\.0\.0/24.*10\.70\.0\.128/25`, prepare: func(t *testing.T, h *host) {
		addLink(t, h, "eth9", "198.51.100.1/24")
		world.Route(t, h.Namespace, "10.70.0.128/25", "198.51.100.2")
	}},
	{name: "uplink missing", network: bridgeOver("eth7"), code: 3, says: `eth7`},
	{name: "uplink enslaved", network: bridgeOver("eth9"), code: 3, says: `eth9.*br9`, prepare: enslave},
	{name: "uplink down", network: bridgeOver("eth9"), code: 3, says: `eth9 is down`, prepare: setDown},
	{name: "uplink is wireless", network: bridgeOver("eth9"), code: 3, says: `eth9.*Wi-Fi`, prepare: makeWireless},
	{name: "uplink in use", network: bridgeOver("eth9"), code: 3, says: `eth9.*192\.0\.2\.77`, prepare: func(t *testing.T, h *host) {
		addLink(t, h, "eth9", "192.0.2.77/24")
	}},
	{name: "bridge missing", network: strings.Replace(bridgeOver("br7"), "uplink", "bridge", 1), code: 3, says: `br7`},
	{name: "vlan uplink missing", network: tenantNetwork("acme", 10, "10.72.0.11"), code: 3, says: `eth1`},
	{name: "vlan uplink enslaved", network: strings.Replace(tenantNetwork("acme", 10, "10.72.0.11"), "eth1", "eth9", 1), code: 3, says: `eth9.*br9`, prepare: enslave},
	{name: "vlan uplink down", network: strings.Replace(tenantNetwork("acme", 10, "10.72.0.11"), "eth1", "eth9", 1), code: 3, says: `eth9 is down`, prepare: setDown},
	{name: "vlan uplink is wireless", network: strings.Replace(tenantNetwork("acme", 10, "10.72.0.11"), "eth1", "eth9", 1), code: 3, says: `eth9.*Wi-Fi`, prepare: makeWireless},
	{name: "vlan 0", network: tenantNetwork("acme", 0, "10.72.0.11"), code: 2, says: `vlan`},
	{name: "vlan 4095", network: tenantNetwork("acme", 4095, "10.72.0.11"), code: 2, says: `vlan`},
	{name: "subnet of two addresses", network: natOf("10.70.0.0/31"), code: 2, says: `subnet`},
	{name: "subnet of one address", network: natOf("10.70.0.0/32"), code: 2, says: `subnet`},
	{name: "ip outside the subnet", network: strings.Replace(natLAN, "\n\n", "\nip = \"10.99.0.1\"\n\n", 1), code: 2, says: `10\.99\.0\.1`},
	{name: "mac twice", network: natLAN + "[[nics]]\nnetwork = \"lan\"\nmac = \"52:54:00:00:00:01\"\n[[nics]]\nnetwork = \"lan\"\nmac = \"52:54:00:00:00:01\"\n", code: 2, says: `nics\[\d\]\.mac`},
	{name: "port taken", network: strings.Replace(natLAN, "\n\n", "\nforward = [\"8080:80\"]\n\n", 1), code: 3, says: `127\.0\.0\.1:8080`, prepare: listen},
	{name: "kernel missing", boot: "[boot]\nkernel = \"/nonexistent/vmlinuz\"\ninitrd = \"micro\"\n", code: 3, says: `/nonexistent/vmlinuz`},
	{name: "kernel is no kernel", boot: "[boot]\nkernel = \"/etc/passwd\"\ninitrd = \"micro\"\n", code: 3, says: `/etc/passwd`},
	{name: "kernel is cut off", boot: "[boot]\nkernel = \"/run/vmlinuz\"\ninitrd = \"micro\"\n", code: 3, says: `/run/vmlinuz`, prepare: func(t *testing.T, _ *host) {
		if err := os.WriteFile("/run/vmlinuz", []byte("MZ"), 0o644); err != nil {
			t.Fatal(err)
		}
	}},
	{name: "kernel is a folder", boot: "[boot]\nkernel = \"/run\"\n", code: 3, says: `/run: not a regular file`},
	{name: "kernel is none to QEMU", boot: "[boot]\nkernel = \"/etc/passwd\"\n", code: 4, says: `vmrun: .*kernel`},
	{name: "initrd missing", boot: "[boot]\nkernel = \"/etc/passwd\"\ninitrd = \"/nonexistent/initrd\"\n", code: 3, says: `/nonexistent/initrd`},
	{name: "image missing", boot: "[[disks]]\npath = \"/nonexistent/disk.qcow2\"\n", code: 3, says: `/nonexistent/disk\.qcow2`},
}

func natOf(subnet string) string {
	return strings.Replace(natLAN, "10.70.0.0/24", subnet, 1)
}

// hide takes programs away from everybody in the sandbox.
func hide(programs ...string) func(*testing.T, *host) {
	return func(t *testing.T, _ *host) {
		for _, program := range programs {
			path, err := exec.LookPath(program)
			if err != nil {
				continue
			}
			if path, err = filepath.EvalSymlinks(path); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount("/dev/null", path, "", unix.MS_BIND, ""); err != nil {
				t.Fatalf("hide %s: %v", path, err)
			}
		}
	}
}

// addLink makes a link that stands for a NIC with the given addresses; a name
// that begins with br makes a bridge without any.
func addLink(t *testing.T, h *host, name string, addresses ...string) netlink.Link {
	t.Helper()
	var link netlink.Link = &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
	if !strings.HasPrefix(name, "br") {
		link = &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "-peer"}
	}
	if err := h.Links().LinkAdd(link); err != nil {
		t.Fatalf("add %s: %v", name, err)
	}
	if !strings.HasPrefix(name, "br") {
		world.SetUp(t, h.Namespace, name+"-peer")
	}
	world.SetUp(t, h.Namespace, name, addresses...)
	if !strings.HasPrefix(name, "br") {
		world.Settle(t, h.Namespace, name)
		world.Settle(t, h.Namespace, name+"-peer")
	}
	return link
}

// enslave makes eth9 a port of the administrator's bridge br9.
func enslave(t *testing.T, h *host) {
	t.Helper()
	addLink(t, h, "eth9")
	bridge := addLink(t, h, "br9")
	link, err := h.Links().LinkByName("eth9")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Links().LinkSetMaster(link, bridge); err != nil {
		t.Fatal(err)
	}
	world.Settle(t, h.Namespace, "br9")
}

// setDown makes a link eth9 that is down.
func setDown(t *testing.T, h *host) {
	t.Helper()
	link := addLink(t, h, "eth9")
	if err := h.Links().LinkSetDown(link); err != nil {
		t.Fatal(err)
	}
	world.SettleAs(t, h.Namespace, "eth9-peer", netlink.OperLowerLayerDown)
}

// makeWireless makes a link eth9 that passes for Wi-Fi: what sets such a link
// apart is an entry in sysfs.
func makeWireless(t *testing.T, h *host) {
	t.Helper()
	addLink(t, h, "eth9")
	entry, err := filepath.EvalSymlinks("/sys/class/net/eth9")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", entry, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	mkdir(t, filepath.Join(entry, "phy80211"))
}

func listen(t *testing.T, _ *host) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
}

func TestBadDays(t *testing.T) {
	beside(t)
	for _, day := range badDays {
		t.Run(day.name, func(t *testing.T) {
			sandbox.Run(t, func(t *testing.T) {
				feature.Needs(t, append(bootFeatures, "tun", "iptables")...)
				h := newHost(t)
				if day.network == "" {
					day.network = natLAN
				}
				if day.boot == "" {
					day.boot = micro(t, "true")
				}
				cmd := h.command(t, "run", writeProfile(t, t.TempDir(), "bad", day.network+day.boot))
				if day.prepare != nil {
					day.prepare(t, h)
				}
				before := h.state(t)
				vm := h.start(t, cmd)
				vm.ends(t, day.code)
				vm.tells(t, day.says)
				h.restored(t, before)
			})
		})
	}
}

// The same profile runs once its day is good again: each test above fails for
// its own reason alone.
func TestGoodDay(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables")...)
		h := newHost(t)
		before := h.state(t)
		network := strings.Replace(natLAN, "\n\n", "\nip = \"10.70.0.9\"\nforward = [\"8080:80\"]\n\n", 1)
		vm := h.run(t, writeProfile(t, t.TempDir(), "good", network+micro(t, "true")))
		vm.expect(t, `eth0 \S+ 10\.70\.0\.9/24`)
		vm.ends(t, 0)
		h.restored(t, before)
	})
}

// A host without any iptables is as good where nftables works.
func TestNoIPTables(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "nftables")...)
		h := newHost(t)
		newOutside(t, h, "10.70.0.0/24")
		hide("iptables", "iptables-legacy", "iptables-nft")(t, h)
		before := h.state(t)
		vm := h.run(t, writeProfile(t, t.TempDir(), "web", natLAN+micro(t, reachScript)))
		vm.expect(t, `eth0 \S+ 10\.70\.0\.\d+/24`)
		vm.asks(t, world.Gateway, true)
		vm.say(t, "")
		vm.ends(t, 0)
		h.restored(t, before)
	})
}

// An image that another QEMU writes to is refused.
func TestLockedImage(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables")...)
		h := newHost(t)
		dir := t.TempDir()
		disk := filepath.Join(dir, "data.raw")
		if err := os.WriteFile(disk, make([]byte, 1<<20), 0o644); err != nil {
			t.Fatal(err)
		}
		kept := func(name string) string {
			return writeProfile(t, dir, name, natLAN+micro(t, serveScript)+
				fmt.Sprintf("[[disks]]\npath = %q\nformat = \"raw\"\nkeep = true\n", disk))
		}
		first := h.run(t, kept("first"))
		first.expect(t, `serving\n`)
		during := h.state(t)
		second := h.run(t, kept("second"))
		second.tells(t, `vmrun: .*data\.raw`)
		second.ends(t, 3)
		h.restored(t, during)
		first.say(t, "")
		first.ends(t, 0)
	})
}

// An address that another VM of the network has is refused.
func TestAddressInUse(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables")...)
		h := newHost(t)
		dir := t.TempDir()
		fixed := strings.Replace(natLAN, "\n\n", "\nip = \"10.70.0.9\"\n\n", 1)
		first := h.run(t, writeProfile(t, dir, "first", fixed+micro(t, serveScript)))
		first.expect(t, `serving\n`)
		during := h.state(t)
		second := h.run(t, writeProfile(t, dir, "second", fixed+micro(t, "true")))
		second.tells(t, `vmrun: .*10\.70\.0\.9`)
		second.ends(t, 3)
		h.restored(t, during)
		first.say(t, "")
		first.ends(t, 0)
	})
}
