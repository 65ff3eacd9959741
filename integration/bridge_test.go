package integration

import (
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
	"github.com/vmrun/vmrun/integration/internal/world"
)

// The guest is one more machine on the LAN: it has its address from there and
// is reached from there.
func TestBridge(t *testing.T) {
	beside(t)
	for _, c := range []struct {
		name, network string
		prepare       func(*testing.T, *host)
	}{
		{"uplink", `uplink = "eth1"`, func(*testing.T, *host) {}},
		{"existing", `bridge = "br0"`, makeBridge},
	} {
		t.Run(c.name, func(t *testing.T) {
			sandbox.Run(t, func(t *testing.T) {
				feature.Needs(t, append(bootFeatures, "tun", "dnsmasq")...)
				h, lan := newHost(t), world.NewLAN(t)
				lan.ServeDHCP(t)
				world.ServeHTTP(t, lan.Gateway, world.Gateway+":80")
				neighbour := lan.Machine(t, "192.0.2.3/24")
				lan.Plug(t, h.Namespace, "eth1")
				c.prepare(t, h)
				before := h.state(t)

				vm := h.run(t, writeProfile(t, t.TempDir(), "machine", `
					[[nics]]
					network = "lan"
					[networks.lan]
					mode = "bridge"
				`+c.network+"\n"+micro(t, `echo "outside: $(fetch 192.0.2.1)"`+serveScript)))
				lease := vm.expect(t, `vmrun-guest: eth0 52:54:00:\S+ (192\.0\.2\.1\d\d)/24 gw 192\.0\.2\.1\b`)
				vm.expect(t, `outside: hello `+lease[1]+`\n`)
				vm.expect(t, `serving\n`)
				if err := reaches(t, neighbour, lease[1]); err != nil {
					t.Errorf("a machine on the LAN does not reach the guest: %v", err)
				}
				vm.say(t, "")
				vm.ends(t, 0)
				h.restored(t, before)
			})
		})
	}
}

// makeBridge puts eth1 into a bridge of the administrator's.
func makeBridge(t *testing.T, h *host) {
	t.Helper()
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
	if err := h.Links().LinkAdd(bridge); err != nil {
		t.Fatal(err)
	}
	uplink, err := h.Links().LinkByName("eth1")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Links().LinkSetMaster(uplink, bridge); err != nil {
		t.Fatal(err)
	}
	world.SetUp(t, h.Namespace, "br0")
	world.Settle(t, h.Namespace, "br0")
}
