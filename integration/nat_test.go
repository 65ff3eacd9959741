package integration

import (
	"context"
	"testing"
	"time"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
	"github.com/vmrun/vmrun/integration/internal/world"
)

const natLAN = `
[[nics]]
network = "lan"

[networks.lan]
mode = "nat"
subnet = "10.70.0.0/24"
`

// serveScript makes a guest answer on port 80 until a line is typed.
const serveScript = `
mkdir -p /tmp/www; echo served >/tmp/www/index.html
busybox httpd -p 80 -h /tmp/www; echo serving; read -r line; echo stopping`

// newOutside gives the host an uplink to a LAN with a web server and a resolver
// on its gateway, and one more machine there that routes the subnet to the host.
func newOutside(t *testing.T, h *host, subnet string) (lan *world.LAN, neighbour *sandbox.Namespace) {
	t.Helper()
	lan = world.NewLAN(t)
	lan.Uplink(t, h.Namespace, "eth1")
	world.ServeHTTP(t, lan.Gateway, world.Gateway+":80")
	lan.ServeDNS(t)
	neighbour = lan.Machine(t, "192.0.2.3/24")
	world.Route(t, neighbour, subnet, world.Host)
	world.Route(t, lan.Gateway, subnet, world.Host)
	return lan, neighbour
}

// reaches fetches from an address within a namespace, with two seconds for it.
func reaches(t *testing.T, ns *sandbox.Namespace, address string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), sandbox.Slowed(2*time.Second))
	defer cancel()
	_, err := world.Fetch(ctx, ns, address)
	return err
}

func TestNAT(t *testing.T) {
	beside(t)
	onEachFirewall(t, func(t *testing.T, h *host) {
		_, neighbour := newOutside(t, h, "10.70.0.0/24")
		before := h.state(t)

		vm := h.run(t, writeProfile(t, t.TempDir(), "web", natLAN+micro(t, `
			echo "name: $(resolve web.vmrun.internal)."
			echo "absent: $(resolve absent.vmrun.internal)."
			echo "outside: $(fetch outside.test)"
		`+serveScript)))
		lease := vm.expect(t, `vmrun-guest: eth0 52:54:00:\S+ (10\.70\.0\.\d+)/24 gw 10\.70\.0\.1 dns 10\.70\.0\.1\n`)
		vm.expect(t, `name: `+lease[1]+`\.\n`)
		vm.expect(t, `absent: \.\n`)
		// The address that the server saw is the uplink's.
		vm.expect(t, `outside: hello 192\.0\.2\.2\n`)
		vm.expect(t, `serving\n`)
		if err := reaches(t, h.Namespace, lease[1]); err != nil {
			t.Errorf("the host does not reach the guest: %v", err)
		}
		if err := world.Ping(neighbour, world.Host); err != nil {
			t.Errorf("the neighbour does not reach the host: %v", err)
		}
		if err := reaches(t, neighbour, lease[1]); err == nil {
			t.Error("a machine on the uplink reaches the guest")
		}
		release := h.keepDead(t, "lan")
		if err := reaches(t, neighbour, lease[1]); err == nil {
			t.Error("a machine on the uplink reaches the guest while the keeper is dead")
		}
		release()
		vm.say(t, "")
		vm.ends(t, 0)
		h.restored(t, before)
	})
}

// Two profiles of one folder share a network of the same name; their guests
// know each other by name.
func TestNATShares(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables")...)
		h := newHost(t)
		before := h.state(t)
		dir := t.TempDir()
		server := h.run(t, writeProfile(t, dir, "server", natLAN+micro(t, serveScript)))
		server.expect(t, `serving\n`)
		client := h.run(t, writeProfile(t, dir, "client", natLAN+micro(t,
			`echo "got: $(fetch server.vmrun.internal)"`)))
		client.tells(t, `joined network lan \(2 members\)`)
		client.expect(t, `got: served\n`)
		client.ends(t, 0)
		if err := reaches(t, h.Namespace, "10.70.0.1:1"); err == nil {
			t.Error("the check of a port that nobody serves succeeds")
		}
		server.say(t, "")
		server.ends(t, 0)
		h.restored(t, before)
	})
}

func TestNATForwardsPorts(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables")...)
		h := newHost(t)
		_, neighbour := newOutside(t, h, "10.70.0.0/24")
		before := h.state(t)
		vm := h.run(t, writeProfile(t, t.TempDir(), "web", `
			[[nics]]
			network = "lan"
			forward = ["8080:80", "0.0.0.0:8081:80"]
			[networks.lan]
			mode = "nat"
		`+micro(t, serveScript)))
		vm.expect(t, `serving\n`)
		for _, c := range []struct {
			from    *sandbox.Namespace
			address string
			want    bool
		}{
			{h.Namespace, "127.0.0.1:8080", true},
			{h.Namespace, "127.0.0.1:8081", true},
			{neighbour, world.Host + ":8081", true},
			{neighbour, world.Host + ":8080", false}, // bound to the loopback
		} {
			if err := reaches(t, c.from, c.address); (err == nil) != c.want {
				t.Errorf("fetch from %s: %v; want success %v", c.address, err, c.want)
			}
		}
		vm.say(t, "")
		vm.ends(t, 0)
		h.restored(t, before)
	})
}

// The exit code of boot.command is vmrun's.
func TestExitCodeOfGuest(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables")...)
		h := newHost(t)
		before := h.state(t)
		vm := h.run(t, writeProfile(t, t.TempDir(), "seven", natLAN+micro(t, `exit 7`)))
		vm.expect(t, `vmrun-guest: exit 7\n`)
		vm.ends(t, 7)
		h.restored(t, before)
	})
}
