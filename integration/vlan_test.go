package integration

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
	"github.com/vmrun/vmrun/integration/internal/world"
	"github.com/vmrun/vmrun/netsetup"
)

// tenantNetwork is a profile's network of a tenant. The guest finds out by
// itself whether it may choose ip.
func tenantNetwork(tenant string, vid int, ip string) string {
	return fmt.Sprintf(`
		[[nics]]
		network = %[1]q
		ip = %[3]q
		[networks.%[1]s]
		mode = "vlan"
		uplink = "eth1"
		vlan = %[2]d
		tenant = %[1]q
		subnet = "10.72.0.0/24"
	`, tenant, vid, ip)
}

// newTrunk joins two hosts by a wire, eth1 on both.
func newTrunk(t *testing.T) (a, b *host) {
	t.Helper()
	a, b = newHost(t), newSecondHost(t)
	world.Wire(t, a.Namespace, "eth1", b.Namespace, "eth1")
	world.SetUp(t, a.Namespace, "eth1")
	world.SetUp(t, b.Namespace, "eth1")
	world.Settle(t, a.Namespace, "eth1")
	world.Settle(t, b.Namespace, "eth1")
	return a, b
}

// fromGuest tells guests' frames from those that the hosts' own links send.
func fromGuest(f world.Frame) bool {
	return bytes.HasPrefix(f.Source, []byte{0x52, 0x54, 0x00})
}

// Tenants span hosts and don't meet: two guests of one tenant, on two hosts,
// reach each other, a guest of another tenant with an address of the same
// range reaches neither and is not reached, not on the same host either, and
// every frame on the trunk has its tenant's tag.
func TestVLAN(t *testing.T) {
	sandbox.Run8021Q(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables")...)
		a, b := newTrunk(t)
		trunk := world.NewTap(t, a.Namespace, "eth1")
		before, beforeB := a.state(t), b.state(t)
		start := func(h *host, name, tenant string, vid int, ip string) *machine {
			return h.run(t, writeProfile(t, t.TempDir(), name, tenantNetwork(tenant, vid, ip)+micro(t, `
				mkdir -p /tmp/www; echo served >/tmp/www/index.html
				busybox httpd -p 80 -h /tmp/www; echo serving`+reachScript)))
		}
		first := start(a, "one", "acme", 10, "10.72.0.11")
		second := start(b, "two", "acme", 10, "10.72.0.12")
		stranger := start(b, "three", "other", 20, "10.72.0.13")
		for vm, ip := range map[*machine]string{first: "11", second: "12", stranger: "13"} {
			vm.expect(t, `eth0 \S+ 10\.72\.0\.`+ip+`/24`)
			vm.expect(t, `serving\n`)
		}
		first.asks(t, "10.72.0.12", true)
		second.asks(t, "10.72.0.11", true)
		stranger.asks(t, "10.72.0.13", true) // its own: it serves, and asks
		stranger.asks(t, "10.72.0.11", false)
		stranger.asks(t, "10.72.0.12", false)
		first.asks(t, "10.72.0.13", false)
		second.asks(t, "10.72.0.13", false)

		seen := map[int]bool{}
		for _, frame := range trunk.Frames(t) {
			if fromGuest(frame) {
				seen[frame.VLAN] = true
			}
		}
		if !seen[10] || !seen[20] || len(seen) != 2 {
			t.Errorf("tags of guests' frames on the trunk: %v; want 10 and 20 and nothing else", seen)
		}
		for _, vm := range []*machine{first, second, stranger} {
			vm.say(t, "")
			vm.ends(t, 0)
		}
		a.restored(t, before)
		b.restored(t, beforeB)
	})
}

// trunkHosts are the hosts of tenants whose rules one or the other carries.
var trunkHosts = []struct {
	firewall string
	run      func(*testing.T, func(*testing.T))
}{{"nftables", sandbox.Run8021QNFT}, {"iptables", sandbox.Run8021Q}}

// Whatever carries the rules, a guest reaches its tenant's, here and behind the
// trunk, and nobody else with an address of the same range, and what it sends with
// a tag of its own choice or from another MAC comes nowhere.
func TestTenantsApart(t *testing.T) {
	t.Parallel()
	for _, kind := range trunkHosts {
		t.Run(kind.firewall, func(t *testing.T) {
			kind.run(t, func(t *testing.T) {
				feature.Needs(t, "tun", kind.firewall)
				a, b := newTrunk(t)
				addVLAN(t, b, "acme", 10)
				world.SetUp(t, b.Namespace, "acme", farAway+"/24")
				world.ServeHTTP(t, b.Namespace, farAway+":80")
				before := a.state(t)
				t.Run("guests", func(t *testing.T) { tenantsApart(t, a, b, kind.firewall) })
				a.restored(t, before)
			})
		})
	}
}

// farAway is who is on a tenant's tag behind the trunk.
const farAway = "10.72.0.99"

func tenantsApart(t *testing.T, a, b *host, firewall string) {
	t.Helper()
	join := func(tenant string, vid int, vm string, n byte) *tapGuest {
		g := newTapGuest(t, a, netsetup.Spec{Name: tenant, Tenant: tenant, Mode: netsetup.VLAN, Uplink: "eth1", VLAN: vid,
			Subnet: netip.MustParsePrefix("10.72.0.0/24"), DHCP: true, Firewall: firewall}, vm, n)
		world.ServeHTTP(t, g.Namespace, g.port.IP().String()+":80")
		return g
	}
	one, two := join("acme", 10, "one", 1), join("acme", 10, "two", 2)
	three, four := join("other", 20, "three", 3), join("other", 20, "four", 4)
	trunk, stranger := world.NewTap(t, b.Namespace, "eth1"), world.NewTap(t, three.Namespace, "eth0")
	one.sendsStrange(t)
	for _, way := range []struct {
		from *tapGuest
		to   string
		want bool
	}{
		{three, farAway, false},
		{three, one.port.IP().String(), false},
		{three, four.port.IP().String(), true},
		{one, three.port.IP().String(), false},
		{one, two.port.IP().String(), true},
		{one, farAway, true}, // the last, behind all that it has sent
	} {
		if err := reaches(t, way.from.Namespace, way.to); (err == nil) != way.want {
			t.Errorf("%v to %s: %v; want it reached: %v", way.from.port.IP(), way.to, err, way.want)
		}
	}
	taggedRight(t, trunk.Frames(t), map[int][]*tapGuest{10: {one, two}, 20: {three, four}})
	for _, f := range stranger.Frames(t) {
		if mac := f.Source.String(); mac == one.port.MAC().String() || mac == strangeMAC {
			t.Errorf("at the other tenant's guest: %v", f)
		}
	}
	leave(t, one, two, three, four)
}

// taggedRight holds that guests' frames on a trunk have one tag, their own, that
// there are some with each, and that none is from strangeMAC.
func taggedRight(t *testing.T, frames []world.Frame, guests map[int][]*tapGuest) {
	t.Helper()
	tags, seen := map[string]int{strangeMAC: -1}, map[int]bool{}
	for vid, all := range guests {
		for _, g := range all {
			tags[g.port.MAC().String()] = vid
		}
	}
	for _, f := range frames {
		want, ok := tags[f.Source.String()]
		switch {
		case !ok: // the hosts'
		case f.VLAN != want, f.Type == typeTagged:
			t.Errorf("on the trunk: %v", f)
		default:
			seen[f.VLAN] = true
		}
	}
	if len(seen) != len(guests) {
		t.Errorf("tags of guests' frames on the trunk: %v", seen)
	}
}

// sendsStrange has the guest send to everybody what it must not: with the other
// tenant's tag, with its own tenant's and that one behind it, and from a MAC that is
// not its own.
func (g *tapGuest) sendsStrange(t *testing.T) {
	t.Helper()
	out := world.NewTap(t, g.Namespace, "eth0")
	strange, err := net.ParseMAC(strangeMAC)
	if err != nil {
		t.Fatal(err)
	}
	const experimental = "\x88\xb5" // local experimental EtherType, IEEE 802
	for _, f := range []struct {
		source net.HardwareAddr
		typed  string
	}{
		{g.port.MAC(), "\x81\x00\x00\x14" + experimental},
		{g.port.MAC(), "\x81\x00\x00\x0a\x81\x00\x00\x14" + experimental},
		{g.port.MAC(), "\x88\xa8\x00\x0a\x81\x00\x00\x14" + experimental},
		{strange, experimental},
	} {
		frame := slices.Concat([]byte("\xff\xff\xff\xff\xff\xff"), f.source, []byte(f.typed), make([]byte, 46))
		if err := out.Send(frame); err != nil {
			t.Fatal(err)
		}
	}
}

// The same profile serves on both hosts: each guest has a MAC and an address of
// its own.
func TestVLANSameProfile(t *testing.T) {
	sandbox.Run8021Q(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables")...)
		a, b := newTrunk(t)
		before, beforeB := a.state(t), b.state(t)
		profile := writeProfile(t, t.TempDir(), "web", `
			[[nics]]
			network = "acme"
			[networks.acme]
			mode = "vlan"
			uplink = "eth1"
			vlan = 10
			subnet = "10.72.0.0/24"
		`+micro(t, reachScript))
		first, second := a.run(t, profile), b.run(t, profile)
		const lease = `vmrun-guest: eth0 (52:54:00:\S+) (10\.72\.0\.\d+)/24`
		one, two := first.expect(t, lease), second.expect(t, lease)
		if one[1] == two[1] || one[2] == two[2] {
			t.Errorf("the guests on two hosts are %v and %v; want MACs and addresses to differ", one, two)
		}
		for _, vm := range []*machine{first, second} {
			vm.say(t, "")
			vm.ends(t, 0)
		}
		a.restored(t, before)
		b.restored(t, beforeB)
	})
}

// Own kernels, and disks, work on a vlan too: the other host has a plain
// sub-interface on the tenant's tag, and serves there.
func TestVLANOwnGuest(t *testing.T) {
	beside(t)
	for _, own := range ownGuests {
		t.Run(own.name, func(t *testing.T) {
			sandbox.Run8021Q(t, func(t *testing.T) {
				feature.Needs(t, append([]string{"tun", "iptables"}, own.features...)...)
				a, b := newTrunk(t)
				addVLAN(t, b, "acme", 10)
				world.SetUp(t, b.Namespace, "acme", "10.72.0.99/24")
				world.ServeHTTP(t, b.Namespace, "10.72.0.99:80")
				before := a.state(t)
				dir := t.TempDir()
				text := tenantNetwork("acme", 10, "10.72.0.11") + own.boot(t, dir, "fetch=http://10.72.0.99/")
				vm := a.run(t, writeProfile(t, dir, "own", text))
				vm.expect(t, `own-guest: eth0 52:54:00:\S+ 10\.72\.0\.11/24`)
				vm.expect(t, `own-guest: fetched hello 10\.72\.0\.11\n`)
				vm.expect(t, `own-guest: done`)
				vm.ends(t, 0)
				a.restored(t, before)
			})
		})
	}
}

// A tag on a trunk is one network's: neither a sub-interface of the
// administrator's is taken, nor another network's.
func TestVLANTaken(t *testing.T) {
	sandbox.Run8021Q(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables")...)
		a, _ := newTrunk(t)
		before := a.state(t)
		dir := t.TempDir()
		profile := func(tenant string) string {
			return writeProfile(t, dir, tenant, tenantNetwork(tenant, 10, "10.72.0.11")+micro(t, serveScript))
		}
		first := a.run(t, profile("acme"), "--grace=0s")
		first.tells(t, `joined network acme`)
		second := a.run(t, profile("other"))
		second.tells(t, `vmrun: .*VLAN 10 of eth1 is taken by .*acme`)
		second.ends(t, 3)
		if err := first.cmd.Process.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		first.ends(t, 143)
		a.restored(t, before)

		addVLAN(t, a, "mine", 10)
		before = a.state(t)
		third := a.run(t, profile("acme"))
		third.tells(t, `vmrun: .*mine`)
		third.ends(t, 3)
		a.restored(t, before)
	})
}

// addVLAN gives a host a sub-interface of eth1 that is the administrator's.
func addVLAN(t *testing.T, h *host, name string, vid int) {
	t.Helper()
	uplink, err := h.Links().LinkByName("eth1")
	if err != nil {
		t.Fatal(err)
	}
	link := &netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: name, ParentIndex: uplink.Attrs().Index}, VlanId: vid}
	if err := h.Links().LinkAdd(link); err != nil {
		t.Fatalf("add VLAN %d to eth1: %v", vid, err)
	}
}

// Where the kernel has no 802.1Q, a vlan network says so.
func TestVLANUnknownToKernel(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		if sandbox.Has8021Q() {
			t.Skip("this kernel has 802.1Q")
		}
		feature.Needs(t, append(bootFeatures, "tun")...)
		a, _ := newTrunk(t)
		before := a.state(t)
		vm := a.run(t, writeProfile(t, t.TempDir(), "one", tenantNetwork("acme", 10, "10.72.0.11")+micro(t, "true")))
		vm.tells(t, `vmrun: .*802\.1Q`)
		vm.ends(t, 3)
		a.restored(t, before)
	})
}
