package integration

import (
	"fmt"
	"regexp"
	"testing"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
	"github.com/vmrun/vmrun/integration/internal/world"
)

// VMs that start at once make one network, each with an address of its own, and
// the last to leave takes it along.
func TestCrowd(t *testing.T) {
	const crowd = 5
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables")...)
		h := newHost(t)
		before := h.state(t)
		dir := t.TempDir()
		var vms []*machine
		for i := range crowd {
			vms = append(vms, h.run(t, writeProfile(t, dir, fmt.Sprintf("vm%d", i), natLAN+micro(t, serveScript))))
		}
		whose := map[string]int{}
		for i, vm := range vms {
			address := vm.expect(t, `vmrun-guest: eth0 \S+ (10\.70\.0\.\d+)/24`)[1]
			if other, taken := whose[address]; taken {
				t.Errorf("vm%d and vm%d both have %s", other, i, address)
			}
			whose[address] = i
		}
		for _, vm := range vms {
			vm.say(t, "")
		}
		for _, vm := range vms {
			vm.ends(t, 0)
		}
		h.restored(t, before)
	})
}

// A guest has a NIC on each of several networks, which stay apart.
func TestTwoNetworks(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables")...)
		h := newHost(t)
		newOutside(t, h, "10.70.0.0/24")
		before := h.state(t)
		dir := t.TempDir()
		inner := h.run(t, writeProfile(t, dir, "inner", hostOnlyLab+micro(t, reachScript)))
		inner.expect(t, `eth0 \S+ 10\.71\.0\.\d+/24`)
		both := h.run(t, writeProfile(t, dir, "both", natLAN+hostOnlyLab+micro(t, serveScript)))
		both.expect(t, `serving\n`)
		// The NICs ask for their addresses at the same time.
		outer := regexp.MustCompile(`eth0 \S+ (10\.70\.0\.\d+)/24`).FindStringSubmatch(both.output())
		shared := regexp.MustCompile(`eth1 \S+ (10\.71\.0\.\d+)/24`).FindStringSubmatch(both.output())
		if outer == nil || shared == nil {
			t.Fatal("a NIC has no address")
		}
		inner.asks(t, shared[1], true)
		inner.asks(t, outer[1], false)
		inner.asks(t, world.Gateway, false)
		for _, vm := range []*machine{inner, both} {
			vm.say(t, "")
			vm.ends(t, 0)
		}
		h.restored(t, before)
	})
}

// A profile that means another network by a running one's name is refused, and
// told what differs.
func TestNetworkDiffers(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables")...)
		h := newHost(t)
		before := h.state(t)
		dir := t.TempDir()
		first := h.run(t, writeProfile(t, dir, "first", natLAN+micro(t, serveScript)))
		first.expect(t, `serving\n`)
		during := h.state(t)
		second := h.run(t, writeProfile(t, dir, "second", natLAN+"mtu = 1400\n"+micro(t, "true")))
		second.tells(t, `vmrun: .*mtu`)
		second.ends(t, 3)
		h.restored(t, during)
		first.say(t, "")
		first.ends(t, 0)
		h.restored(t, before)
	})
}
