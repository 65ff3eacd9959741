package integration

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
	"github.com/vmrun/vmrun/integration/internal/world"
)

// ourLink is the form of the names of vmrun's links.
var ourLink = regexp.MustCompile(`^vm[rtv][a-z2-7]{10,12}$`)

// ownLinks tells of each link of vmrun's, and of the named ones, what other
// daemons might change: whether it is up, its bridge, its addresses, IPv6.
func (h *host) ownLinks(t *testing.T, others ...string) string {
	t.Helper()
	links, err := h.Links().LinkList()
	if err != nil {
		t.Fatal(err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	var lines []string
	for _, l := range links {
		a := l.Attrs()
		if !ourLink.MatchString(a.Name) && !slices.Contains(others, a.Name) {
			continue
		}
		addresses, err := h.Links().AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			t.Fatal(err)
		}
		ipv6, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + a.Name + "/disable_ipv6")
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, fmt.Sprintf("%s %s flags %v in %q %v MTU %d addresses %v IPv6 off %s",
			a.Name, a.HardwareAddr, a.Flags, names[a.MasterIndex], a.Group, a.MTU, addresses, strings.TrimSpace(string(ipv6))))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// unchanged is how long links have to stay as they are beside others' daemons.
const unchanged = 30 * time.Second

// staysSo fails the test unless the links are, or soon are again, as before, and
// then stay so: they are compared at each news of a link, and in between.
func (h *host) staysSo(t *testing.T, when, before string, others ...string) {
	t.Helper()
	var is string
	asBefore := func() bool { is = h.ownLinks(t, others...); return is == before }
	h.eventually(t, when+", the links are as before", asBefore)
	if !h.until(t, time.After(unchanged), func() bool { return !asBefore() }) {
		return
	}
	t.Errorf("%s, the links do not stay as they are", when)
	same(t, before, is)
}

// systemd-networkd with a file that fits every name takes ports out of bridges,
// addresses away and IPv6 into use, when a link comes and when it starts.
func TestNetworkd(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables", "daemons")...)
		h := newHost(t)
		world.InstallDaemons(t)
		world.ServeUdev(t)
		d := world.ServeNetworkd(t)
		lan := world.NewLAN(t)
		lan.Plug(t, h.Namespace, "eth1") // networkd gives it its address and route
		world.ServeHTTP(t, lan.Gateway, world.Gateway+":80")
		lan.ServeDNS(t)
		h.eventually(t, "networkd sets eth1 up", func() bool { return reaches(t, h.Namespace, world.Gateway) == nil })

		vm := runReach(t, h)
		vm.asksUntil(t, world.Domain)
		var links string
		h.eventually(t, "networkd has seen to the port", func() bool {
			links = h.ownLinks(t)
			return d.SawTo(tapIndex(t, h)) && strings.Contains(links, "10.70.0.1/24")
		})
		h.staysSo(t, "beside networkd", links)
		interfered := strings.Count(h.logs(), "put back what somebody else took away")
		d.Restart(t)
		h.eventually(t, "networkd interferes", func() bool {
			return strings.Count(h.logs(), "put back what somebody else took away") > interfered
		})
		h.eventually(t, "networkd has seen to the port", func() bool { return d.SawTo(tapIndex(t, h)) })
		h.staysSo(t, "after networkd's restart", links)
		vm.asksUntil(t, world.Domain)
		vm.say(t, "")
		vm.ends(t, 0)
	})
}

// tapIndex is the index of the only TAP.
func tapIndex(t *testing.T, h *host) int {
	t.Helper()
	links, err := h.Links().LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, "vmt") {
			return l.Attrs().Index
		}
	}
	t.Fatal("there is no TAP")
	return 0
}

// NetworkManager takes every wired interface that comes, but for those that
// somebody has configured before.
func TestNetworkManager(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables", "daemons")...)
		h := newHost(t)
		newOutside(t, h, "10.70.0.0/24")
		world.InstallDaemons(t)
		world.ServeUdev(t)
		d := world.ServeNetworkManager(t)
		addLink(t, h, "eth2")
		h.eventually(t, "NetworkManager takes what nobody has configured", func() bool {
			return strings.Contains(deviceShown(t, "CONNECTION", "eth2"), "Wired connection")
		})

		vm := runReach(t, h)
		vm.asks(t, world.Domain, true)
		links := h.ownLinks(t, "eth1")
		seen := func() bool {
			for line := range strings.Lines(links) {
				name, _, _ := strings.Cut(line, " ")
				if !strings.Contains(deviceShown(t, "STATE", name), "connected") {
					return false
				}
			}
			return true
		}
		h.eventually(t, "NetworkManager has seen to the links", seen)
		h.staysSo(t, "beside NetworkManager", links, "eth1")
		vm.asks(t, world.Domain, true)
		d.Restart(t)
		h.eventually(t, "NetworkManager has seen to the links", seen)
		h.staysSo(t, "after NetworkManager's restart", links, "eth1")
		vm.asks(t, world.Domain, true)
		vm.say(t, "")
		vm.ends(t, 0)
	})
}

// deviceShown is what NetworkManager says of an interface; "": it does not know that
// yet.
func deviceShown(t *testing.T, what, name string) string {
	out, _ := exec.CommandContext(t.Context(), "nmcli", "-g", "GENERAL."+what, "device", "show", name).Output()
	return string(out)
}

// An interface of NetworkManager's is not taken from it, not even a spare one: it
// would take it out of the bridge again. What the refusal says to do helps.
func TestNetworkManagerUplink(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "dnsmasq", "daemons")...)
		h, lan := newHost(t), world.NewLAN(t)
		lan.Plug(t, h.Namespace, "eth1")
		world.ServeHTTP(t, lan.Gateway, world.Gateway+":80")
		world.ServeDnsmasq(t, lan.Gateway, "IP range 192.0.2.100", "--port=0", "--dhcp-authoritative",
			"--dhcp-range=192.0.2.100,192.0.2.199,255.255.255.0,1h",
			"--dhcp-host=52:54:*:*:*:*,set:guest", "--dhcp-ignore=tag:!guest")
		world.InstallDaemons(t)
		world.ServeUdev(t)
		d := world.ServeNetworkManager(t, "ipv4.dhcp-timeout=10", "ipv6.ra-timeout=10")
		state := func() string { return deviceShown(t, "STATE", "eth1") }
		h.eventually(t, "NetworkManager takes the interface", func() bool { return strings.Contains(state(), "connecting") })

		profile := writeProfile(t, t.TempDir(), "web", bridgeOver("eth1")+micro(t, reachScript))
		refused := h.run(t, profile)
		refused.tells(t, "eth1 is managed by NetworkManager.*nmcli device set eth1 managed no")
		refused.ends(t, 3)

		world.Tool(t, "nmcli", "device", "set", "eth1", "managed", "no")
		h.eventually(t, "NetworkManager leaves the interface alone", func() bool { return strings.Contains(state(), "unmanaged") })
		world.Tool(t, "ip", "link", "set", "eth1", "up")
		vm := h.run(t, profile)
		vm.expect(t, `eth0 \S+ 192\.0\.2\.\d+/24`)
		vm.asks(t, world.Gateway, true)
		links := h.ownLinks(t, "eth1")
		h.staysSo(t, "beside NetworkManager", links, "eth1")
		d.Restart(t)
		h.eventually(t, "NetworkManager has looked at the interface", func() bool { return !strings.Contains(state(), "connecting") })
		h.staysSo(t, "after NetworkManager's restart", links, "eth1")
		vm.asks(t, world.Gateway, true)
		vm.say(t, "")
		vm.ends(t, 0)
	})
}
