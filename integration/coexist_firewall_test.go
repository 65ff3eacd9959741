package integration

import (
	"slices"
	"strings"
	"testing"

	"github.com/vmrun/vmrun/integration/internal/sandbox"
	"github.com/vmrun/vmrun/integration/internal/world"
)

// pingScript tells whether the gateway answers a ping.
const pingScript = `
if ping -c1 -W5 10.70.0.1 >/dev/null; then echo "ping: yes"; else echo "ping: no"; fi
`

// Guests have DHCP, DNS, ping and the outside where ufw drops what it does not
// know, whether it begins while they run or did before, and through its reload;
// nobody else gets more than before.
func TestUFW(t *testing.T) {
	beside(t)
	besideOthers(t, func(t *testing.T, h *host) {
		world.InstallUFW(t)
		lan, neighbour := newOutside(t, h, "10.70.0.0/24")
		bystander := newBystander(t, h, lan)
		world.ServeHTTP(t, h.Namespace, ":8000")
		writeSetting(t, "net/ipv4/ip_forward", "1")
		forbidden := func(want bool) {
			t.Helper()
			if err := reaches(t, neighbour, world.Host+":8000"); (err != nil) != want {
				t.Errorf("a machine outside reaches the host's port: %v; forbidden: %v", err, want)
			}
			if err := reaches(t, bystander, world.Gateway); (err != nil) != want {
				t.Errorf("the host forwards for others: %v; forbidden: %v", err, want)
			}
		}
		forbidden(false)
		for _, command := range []string{"default deny incoming", "default deny routed", "allow 22/tcp", "--force enable", "disable"} {
			world.Tool(t, append([]string{"ufw"}, strings.Fields(command)...)...)
		}
		useChains(t)
		before := h.state(t) // with what ufw leaves of its chains when it is disabled
		dir := t.TempDir()
		var running []*machine
		boot := func(name string) {
			t.Helper()
			vm := h.run(t, writeProfile(t, dir, name, natLAN+micro(t, pingScript+reachScript)))
			vm.expect(t, `eth0 \S+ 10\.70\.0\.\d+/24 gw 10\.70\.0\.1 dns 10\.70\.0\.1\n`)
			vm.expect(t, `ping: yes\n`)
			running = append(running, vm)
		}
		work := func(when string) {
			t.Helper()
			for _, vm := range running {
				t.Logf("%s: the guest reaches the outside after %v", when, vm.asksUntil(t, world.Domain))
				vm.asks(t, "10.70.0.1:8000", false) // the host's service is none of DHCP, DNS and ping
			}
			forbidden(true)
			h.carried(t)
		}
		boot("first")
		world.Tool(t, "ufw", "--force", "enable")
		work("after ufw has begun")
		boot("second")
		work("beside ufw")
		world.Tool(t, "ufw", "reload")
		work("after ufw's reload")
		for _, vm := range running {
			vm.say(t, "")
			vm.ends(t, 0)
		}
		world.Tool(t, "ufw", "disable")
		h.restored(t, before)
	}, "daemons")
}

// With br_netfilter, iptables decides on frames between ports of a bridge as well.
func TestBridgeNetfilter(t *testing.T) {
	beside(t)
	besideOthers(t, func(t *testing.T, h *host) {
		writeSetting(t, "net/bridge/bridge-nf-call-iptables", "1")
		left, right := sandbox.NewNamespace(t), sandbox.NewNamespace(t)
		addLink(t, h, "br9")
		for i, ns := range []*sandbox.Namespace{left, right} {
			name := []string{"left", "right"}[i]
			world.Wire(t, h.Namespace, name, ns, "eth0")
			world.SetUp(t, ns, "eth0", []string{"198.51.100.1/24", "198.51.100.2/24"}[i])
			enslaveLink(t, h, name, "br9")
			world.SetUp(t, h.Namespace, name)
		}
		world.Settle(t, h.Namespace, "br9")
		world.ServeHTTP(t, right, ":80")
		if err := reaches(t, left, "198.51.100.2"); err != nil {
			t.Errorf("the bridge does not carry frames, so there is nothing to forbid: %v", err)
		}
		restoreRules(t, "*filter\n:FORWARD DROP\nCOMMIT\n")
		if err := reaches(t, left, "198.51.100.2"); err == nil {
			t.Error("iptables does not see bridged frames")
		}
		useChains(t)
		before := h.state(t)
		dir := t.TempDir()
		server := h.run(t, writeProfile(t, dir, "server", natLAN+micro(t, serveScript)))
		server.expect(t, `serving\n`)
		client := h.run(t, writeProfile(t, dir, "client", natLAN+micro(t, reachScript)))
		client.expect(t, `eth0 \S+ 10\.70\.0\.\d+/24`)
		client.asks(t, "server.vmrun.internal", true)
		h.carried(t)
		if err := reaches(t, left, "198.51.100.2"); err == nil {
			t.Error("beside vmrun, iptables lets others' bridged frames pass")
		}
		client.say(t, "")
		client.ends(t, 0)
		server.say(t, "")
		server.ends(t, 0)
		h.restored(t, before)
	}, "br_netfilter")
}

// enslaveLink puts a link that is there into a bridge.
func enslaveLink(t *testing.T, h *host, name, bridge string) {
	t.Helper()
	link, err := h.Links().LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	master, err := h.Links().LinkByName(bridge)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Links().LinkSetMaster(link, master); err != nil {
		t.Fatal(err)
	}
}

// serveFirewalld starts firewalld, and has it use the zone that vmrun does: by
// nftables, a zone's chains stay from then on.
func serveFirewalld(t *testing.T, backend string) *world.Daemon {
	t.Helper()
	d := world.ServeFirewalld(t, backend)
	if backend == "nftables" {
		world.Tool(t, "firewall-cmd", "--zone=trusted", "--add-interface=some0")
		world.Tool(t, "firewall-cmd", "--zone=trusted", "--remove-interface=some0")
	}
	return d
}

// firewalld rejects what comes by a bridge that it does not know, and throws
// others' rules away whenever it starts or reads its configuration anew.
func TestFirewalld(t *testing.T) {
	beside(t)
	for _, backend := range []string{"nftables", "iptables"} {
		t.Run("firewalld by "+backend, func(t *testing.T) {
			besideOthers(t, func(t *testing.T, h *host) {
				lan, neighbour := newOutside(t, h, "10.70.0.0/24")
				bystander := newBystander(t, h, lan)
				writeSetting(t, "net/ipv4/ip_forward", "1")
				world.ServeHTTP(t, h.Namespace, ":8000")
				world.InstallDaemons(t)
				useChains(t)
				if err := reaches(t, bystander, world.Gateway); err != nil {
					t.Errorf("the host does not forward, so there is nothing to forbid: %v", err)
				}
				d := serveFirewalld(t, backend)
				forbidden := func() {
					t.Helper()
					if reaches(t, bystander, world.Gateway) == nil || reaches(t, neighbour, world.Host+":8000") == nil {
						t.Error("firewalld forbids nothing")
					}
				}
				forbidden()
				before := h.state(t)

				vm := h.run(t, writeProfile(t, t.TempDir(), "web", natLAN+micro(t, pingScript+reachScript)))
				lease := vm.expect(t, `eth0 \S+ (10\.70\.0\.\d+)/24`)
				vm.expect(t, `ping: yes\n`)
				works := func(when string) {
					t.Helper()
					took := vm.asksUntil(t, world.Domain) // by DNS, outward, masqueraded
					t.Logf("%s: the guest reaches the outside after %v", when, took)
					vm.asks(t, "10.70.0.1:8000", false)
					forbidden()
					h.carried(t)
					if reaches(t, neighbour, lease[1]) == nil {
						t.Errorf("%s: a machine on the uplink reaches the guest", when)
					}
				}
				works("at the start")
				world.Tool(t, "firewall-cmd", "--reload")
				// How soon is judged where no resolver waits 5 s for the answer to a
				// question that firewalld dropped while it reloaded: in netsetup.
				works("after firewalld's reload")
				d.Restart(t)
				world.Tool(t, "firewall-cmd", "--get-default-zone") // answered when its rules are there
				works("after firewalld's restart")
				vm.say(t, "")
				vm.ends(t, 0)
				h.gone(t, before)
				same(t, chainsInOrder(before.text), chainsInOrder(h.state(t).text))
			}, "daemons")
		})
	}
}

// chainsInOrder has the chains of each table in the order of their names: firewalld
// makes its own anew at its start, and of the kernel's those that nobody else uses
// meanwhile. The rules of each stay in their order.
func chainsInOrder(text string) string {
	var rest, chains []string
	table, chain := "", ""
	for line := range strings.Lines(text) {
		if name, ok := strings.CutPrefix(line, "table "); ok {
			table = name
		}
		if strings.HasPrefix(line, "\tchain ") {
			chain = table
		}
		if chain == "" {
			rest = append(rest, line)
			continue
		}
		chain += line
		if line == "\t}\n" {
			chains, chain = append(chains, chain), ""
		}
	}
	slices.Sort(chains)
	return strings.Join(append(rest, chains...), "")
}
