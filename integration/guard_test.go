package integration

import (
	"testing"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
	"github.com/vmrun/vmrun/integration/internal/world"
)

const (
	strangeTag = 20
	strangeMAC = "02:00:00:00:00:99"
	typeTagged = 0x8100
)

// sent is what of a guest's frames came through.
type sent struct{ plain, tagged, spoofed bool }

func look(frames []world.Frame) sent {
	var s sent
	for _, f := range frames {
		switch {
		case f.Source.String() == strangeMAC:
			s.spoofed = true
		case fromGuest(f) && (f.VLAN == strangeTag || f.Type == typeTagged):
			s.tagged = true
		case fromGuest(f):
			s.plain = true
		}
	}
	return s
}

// What a guest sends with a tag, or from another MAC than its own, stays inside
// unless the profile lets it out.
func TestGuard(t *testing.T) {
	beside(t)
	for _, c := range []struct {
		name, nic string
		want      sent
	}{
		{"closed", "", sent{plain: true}},
		{"trunk", "trunk = true", sent{plain: true, tagged: true}},
		{"spoof", "spoof = true", sent{plain: true, spoofed: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			sandbox.Run(t, func(t *testing.T) {
				feature.Needs(t, append(bootFeatures, "tun", "dnsmasq")...)
				h, lan := newHost(t), world.NewLAN(t)
				lan.ServeDHCP(t)
				neighbour := lan.Machine(t, "192.0.2.3/24")
				lan.Plug(t, h.Namespace, "eth1")
				tap := world.NewTap(t, neighbour, "eth0")
				before := h.state(t)
				h.sendsStrange(t, `
					[[nics]]
					network = "lan"
				`+c.nic+`
					[networks.lan]
					mode = "bridge"
					uplink = "eth1"
				`)
				if got := look(tap.Frames(t)); got != c.want {
					t.Errorf("on the LAN: %+v; want %+v", got, c.want)
				}
				h.restored(t, before)
			})
		})
	}
}

// The same on the trunk of tenants, where it would reach the other tenant.
func TestVLANGuard(t *testing.T) {
	sandbox.Run8021Q(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables")...)
		a, b := newTrunk(t)
		tap := world.NewTap(t, b.Namespace, "eth1")
		before := a.state(t)
		a.sendsStrange(t, tenantNetwork("acme", 10, "10.72.0.11"))
		if got, want := look(tap.Frames(t)), (sent{plain: true}); got != want {
			t.Errorf("on the trunk: %+v; want %+v", got, want)
		}
		a.restored(t, before)
	})
}

// sendsStrange boots the tests' own guest, which sends frames with a strange tag
// and from a strange MAC, and waits for its end.
func (h *host) sendsStrange(t *testing.T, network string) {
	t.Helper()
	dir := t.TempDir()
	boot := ownGuests[0].boot(t, dir, "tag=20 spoof="+strangeMAC)
	vm := h.run(t, writeProfile(t, dir, "strange", network+boot))
	vm.expect(t, `own-guest: eth0 52:54:00:`)
	vm.expect(t, `own-guest: done`)
	vm.ends(t, 0)
}
