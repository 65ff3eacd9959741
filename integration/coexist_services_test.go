package integration

import (
	"net"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
	"github.com/vmrun/vmrun/integration/internal/world"
)

// runReach boots a guest on natLAN that tries what is typed.
func runReach(t *testing.T, h *host) *machine {
	t.Helper()
	vm := h.run(t, writeProfile(t, t.TempDir(), "web", natLAN+micro(t, reachScript)))
	vm.expect(t, `eth0 \S+ 10\.70\.0\.\d+/24 gw 10\.70\.0\.1 dns 10\.70\.0\.1\n`)
	return vm
}

// A resolver on the host's loopback, as systemd-resolved's, is reached through
// the keeper.
func TestLoopbackResolver(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables")...)
		h, lan := newHost(t), world.NewLAN(t)
		lan.Uplink(t, h.Namespace, "eth1")
		world.ServeHTTP(t, lan.Gateway, world.Gateway+":80")
		world.ServeDNS(t, h.Namespace, "127.0.0.53")
		world.NameResolver(t, "127.0.0.53")
		before := h.state(t)
		vm := runReach(t, h)
		vm.asks(t, world.Domain, true)
		world.NameResolver(t, "127.0.0.54") // where nobody answers
		vm.asks(t, world.Domain, false)
		world.NameResolver(t, "127.0.0.53")
		vm.asks(t, world.Domain, true)
		vm.say(t, "")
		vm.ends(t, 0)
		h.restored(t, before)
	})
}

// Another DHCP server has port 67 of every address: both serve their own.
func TestOtherDHCPServer(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables", "dnsmasq")...)
		h, lan := newHost(t), world.NewLAN(t)
		lan.Uplink(t, h.Namespace, "eth1")
		world.ServeDnsmasq(t, h.Namespace, "IP range 192.0.2.100", "--port=0", "--dhcp-authoritative",
			"--dhcp-range=192.0.2.100,192.0.2.199,255.255.255.0,1h")
		if l, err := net.ListenPacket("udp4", ":67"); err == nil {
			l.Close()
			t.Fatal("port 67 is free")
		}
		client := sandbox.NewNamespace(t)
		lan.Plug(t, client, "eth0")
		leased := func() {
			t.Helper()
			err := client.Do(func() error {
				_, err := udhcpc("eth0")
				return err
			})
			if err != nil {
				t.Errorf("a machine on the LAN gets no lease: %v", err)
			}
		}
		leased()
		before := h.state(t)
		vm := runReach(t, h)
		leased()
		vm.say(t, "")
		vm.ends(t, 0)
		h.restored(t, before)
	})
}

// dnsmasq has port 53 of every address, be it by one socket, by one for each
// address, or by one for each that ever comes. It goes on serving the host, and
// guests are served by their network.
func TestDnsmasqOnEveryAddress(t *testing.T) {
	beside(t)
	for name, option := range map[string]string{
		"any": "--log-queries", "bind-interfaces": "--bind-interfaces", "bind-dynamic": "--bind-dynamic",
	} {
		t.Run(name, func(t *testing.T) {
			sandbox.Run(t, func(t *testing.T) {
				feature.Needs(t, append(bootFeatures, "tun", "iptables", "dnsmasq")...)
				h := newHost(t)
				newOutside(t, h, "10.70.0.0/24")
				world.ServeDnsmasq(t, h.Namespace, "started", option, "--address=/host.test/"+world.Gateway)
				serves := func() {
					t.Helper()
					query := new(dns.Msg).SetQuestion("host.test.", dns.TypeA)
					for _, network := range []string{"udp", "tcp"} {
						answer, _, err := (&dns.Client{Net: network}).Exchange(query, "127.0.0.1:53")
						if err != nil || len(answer.Answer) != 1 {
							t.Errorf("dnsmasq does not serve the host by %s: %v", network, err)
						}
					}
				}
				serves()
				before := h.state(t)
				vm := runReach(t, h)
				vm.asks(t, world.Domain, true)
				vm.asks(t, "host.test", false) // which only dnsmasq knows
				serves()
				vm.say(t, "")
				vm.ends(t, 0)
				// dnsmasq keeps a socket for each address that it has seen.
				h.gone(t, before)
				same(t, without(before.text, `"dnsmasq"`), without(h.state(t).text, `"dnsmasq"`))
			})
		})
	}
}

// without leaves lines out that hold a word.
func without(text, word string) string {
	var kept strings.Builder
	for line := range strings.Lines(text) {
		if !strings.Contains(line, word) {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

// A VPN takes everything over by two halves of a default route, or some of it by
// a table of its own that a rule leads to, as Tailscale's. Guests go where the
// host goes; ranges of such tables are taken.
func TestVPN(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables")...)
		h := newHost(t)
		newOutside(t, h, "10.70.0.0/24")
		vpn := sandbox.NewNamespace(t)
		world.Wire(t, h.Namespace, "vpn0", vpn, "eth0")
		world.SetUp(t, h.Namespace, "vpn0", "100.64.0.2/24")
		world.SetUp(t, vpn, "eth0", "100.64.0.1/24", "203.0.113.9/32")
		world.Settle(t, h.Namespace, "vpn0")
		world.ServeHTTP(t, vpn, "203.0.113.9:80")
		rule := netlink.NewRule()
		rule.Priority, rule.Table = 5270, 52
		if err := h.Links().RuleAdd(rule); err != nil {
			t.Fatal(err)
		}
		before := h.state(t)

		vm := runReach(t, h)
		vm.asks(t, "203.0.113.9", false)
		halves := []string{"0.0.0.0/1", "128.0.0.0/1"}
		for _, half := range halves {
			world.Route(t, h.Namespace, half, "100.64.0.1")
		}
		vm.asksUntil(t, "203.0.113.9")
		for _, half := range halves {
			unroute(t, h, half, 0)
		}
		vm.asks(t, "203.0.113.9", false)
		routeByTable(t, h, "203.0.113.0/24", 52)
		vm.asksUntil(t, "203.0.113.9")
		vm.asks(t, world.Gateway, true)
		vm.say(t, "")
		vm.ends(t, 0)
		unroute(t, h, "203.0.113.0/24", 52)
		h.restored(t, before)

		for _, half := range halves { // are no ranges that anybody has
			world.Route(t, h.Namespace, half, "100.64.0.1")
		}
		routeByTable(t, h, "10.70.0.0/16", 52)
		before = h.state(t)
		vm = h.run(t, writeProfile(t, t.TempDir(), "web", natLAN+micro(t, "true")))
		vm.ends(t, 3)
		vm.tells(t, `10\.70\.0\.0/24 is taken: 10\.70\.0\.0/16 is routed to vpn0 \(table 52\)`)
		h.restored(t, before)
		unroute(t, h, "10.70.0.0/16", 52)
		vm = runReach(t, h)
		vm.asks(t, "203.0.113.9", true)
		vm.say(t, "")
		vm.ends(t, 0)
	})
}

func tableRoute(t *testing.T, h *host, network string, table int) *netlink.Route {
	t.Helper()
	link, err := h.Links().LinkByName("vpn0")
	if err != nil {
		t.Fatal(err)
	}
	dst, err := netlink.ParseIPNet(network)
	if err != nil {
		t.Fatal(err)
	}
	return &netlink.Route{Dst: dst, Gw: net.ParseIP("100.64.0.1"), LinkIndex: link.Attrs().Index, Table: table}
}

func routeByTable(t *testing.T, h *host, network string, table int) {
	t.Helper()
	if err := h.Links().RouteAdd(tableRoute(t, h, network, table)); err != nil {
		t.Fatal(err)
	}
}

func unroute(t *testing.T, h *host, network string, table int) {
	t.Helper()
	if err := h.Links().RouteDel(tableRoute(t, h, network, table)); err != nil {
		t.Fatal(err)
	}
}
