package netsetup

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestTakeoverRefusals: each leaves the host as it is and says what to do.
func TestTakeoverRefusals(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	usedUplink(t)
	h := testHost(t)
	network(t)
	bridge, index := newNamesHere(t, h).bridge, linkIndex(t, "eth0")
	for _, c := range []struct{ name, set, unset, want string }{
		{"iptables", "iptables -A INPUT -i eth0 -p tcp --dport 22 -j ACCEPT", "iptables -D INPUT 1",
			"names eth0 and would stop matching, an open port perhaps: put one for " + bridge},
		{"iptables wildcard", "iptables -A FORWARD -o eth+ -j DROP", "iptables -D FORWARD 1", "names eth0 and would stop matching"},
		{"ip6tables", "ip6tables -A INPUT -i eth0 -j ACCEPT", "ip6tables -D INPUT 1", "names eth0 and would stop matching"},
		{"iptables-legacy", "iptables-legacy -A INPUT -i eth0 -j DROP", "iptables-legacy -D INPUT 1", "names eth0 and would stop matching"},
		{"nft", "nft add table inet t; nft add chain inet t c; nft add rule inet t c iifname eth0 drop", "nft delete table inet t",
			`the firewall's rule "iifname \"eth0\" drop" of inet t chain c names eth0`},
		{"nft by index", "nft add table ip t; nft add chain ip t c; nft add rule ip t c oif eth0 drop", "nft delete table ip t", "names eth0"},
		{"nft set", `nft add table inet t; nft 'add set inet t s { type ifname; elements = { "eth0", "eth7" }; }'`, "nft delete table inet t", "names eth0"},
		{"a twin for the bridge that comes too late",
			fmt.Sprintf("iptables -A INPUT -i eth0 -j DROP; iptables -A INPUT -p tcp -j ACCEPT; iptables -A INPUT -i %s -j DROP", bridge), "iptables -F INPUT", "names eth0"},
		{"inverted", fmt.Sprintf("iptables -A INPUT ! -i eth0 -j DROP; iptables -A INPUT ! -i %s -j DROP", bridge), "iptables -F INPUT", "names eth0"},
		{"NetworkManager", fmt.Sprintf(`mkdir -p /run/NetworkManager/devices; printf '[device]\nmanaged=true\n' >/run/NetworkManager/devices/%d`, index),
			"rm -r /run/NetworkManager", "eth0 is managed by NetworkManager, which would give it its addresses back: have NetworkManager make the bridge"},
		{"systemd-networkd", fmt.Sprintf(`mkdir -p /run/systemd/netif/links; printf 'ADMIN_STATE=configured\nOPER_STATE=routable\n' >/run/systemd/netif/links/%d`, index),
			"rm -r /run/systemd", "eth0 is managed by systemd-networkd"},
		{"inverted policy rule", "ip rule add not iif eth0 lookup 100 priority 600", "ip rule del priority 600", "is inverted (not)"},
		{"policy rules of one priority", "ip rule add iif eth0 lookup 100 priority 600; ip rule add to 10.0.0.0/8 lookup 101 priority 600",
			"ip rule del priority 600; ip rule del priority 600", "stands before another one of its priority (600: to 10.0.0.0/8 lookup 101)"},
		{"nexthop object", "ip nexthop add id 7 via 192.0.2.1 dev eth0; ip route add 10.6.0.0/16 nhid 7", "ip route del 10.6.0.0/16; ip nexthop del id 7",
			"route 10.6.0.0/16 via 192.0.2.1 uses a nexthop object"},
		{"twin route", "ip link add other type veth peer name farother; ip link set other up; ip link set farother up; ip route append default dev other metric 100", "ip link del other",
			"route default via 192.0.2.1 metric 100 has a twin of the same metric over another interface, behind it"},
		{"DHCPv6", "ip addr add 2001:db8::77/128 dev eth0 nodad valid_lft 900 preferred_lft 900", "ip addr del 2001:db8::77/128 dev eth0", "2001:db8::77/128 is a DHCPv6 lease"},
		{"secret", "sysctl -qw net.ipv6.conf.eth0.addr_gen_mode=3", "sysctl -qw net.ipv6.conf.eth0.addr_gen_mode=0; ip addr del $(ip -o -6 addr show dev eth0 | awk '/stable-privacy/{print $4}') dev eth0", "come from a secret"},
		{"IPv6 forwarding of its own", "sysctl -qw net.ipv6.conf.eth0.forwarding=1", "sysctl -qw net.ipv6.conf.eth0.forwarding=0", "net.ipv6.conf.eth0.forwarding is 1"},
		{"token", "ip token set ::55 dev eth0", "ip token set :: dev eth0", "eth0 has an IPv6 token"},
		{"macvlan", "ip link add m0 link eth0 type macvlan", "ip link del m0", "m0 (macvlan) is built on eth0"},
		{"vxlan", "ip link add v0 type vxlan id 7 dev eth0 dstport 4789", "ip link del v0", "v0 (vxlan) is built on eth0"},
		{"part of a bridge", "ip link add br5 type bridge; ip link set eth0 master br5", "ip link del br5", "eth0 is already part of br5"},
		{"down", "ip link add idle type veth peer name faridle", "ip link del idle", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			spec := takeoverSpec()
			if c.name == "down" {
				spec.Uplink, c.want = "idle", "idle is down; bring it up first"
			}
			sh(t, c.set)
			defer sh(t, c.unset)
			settleLinkLocal(t) // addr_gen_mode makes one more
			before := network(t)
			p, err := Attach(context.Background(), h, spec, testPort())
			if err == nil {
				p.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
			if diff := cmp.Diff(before, network(t)); diff != "" {
				t.Errorf("the refusal changed the host:\n%s", diff)
			}
		})
	}
}

// TestUseWithoutTakeover: every reason is said.
func TestUseWithoutTakeover(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	usedUplink(t)
	h := testHost(t)
	spec := takeoverSpec()
	spec.Takeover = false
	_, err := Attach(context.Background(), h, spec, testPort())
	if err == nil {
		t.Fatal("an uplink in use was bridged")
	}
	for _, want := range []string{"it has 192.0.2.2/24", "192.0.2.2/24 is of limited lifetime", "0.0.0.0/0, the default route, is routed to it",
		"10.4.0.0/16 is routed to it", "policy rule 500: lookup 100 names it", "takeover = true moves that to the bridge"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v\ndoes not say %q", err, want)
		}
	}
}

// TestRulesForBoth: a rule that stands for the bridge as well is no obstacle.
func TestRulesForBoth(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	usedUplink(t)
	h := testHost(t)
	bridge := newNamesHere(t, h).bridge
	sh(t, fmt.Sprintf("iptables -A INPUT -p icmp -j ACCEPT; iptables -A INPUT -i eth0 -p tcp --dport 22 -j ACCEPT; iptables -A INPUT -i %s -p tcp --dport 22 -j ACCEPT", bridge))
	sh(t, fmt.Sprintf(`nft add table inet t; nft add chain inet t c; nft add rule inet t c iifname '{ "eth0", "%s" }' tcp dport 22 accept`, bridge))
	sh(t, "nft add table netdev n; nft 'add chain netdev n c { type filter hook ingress device eth0 priority 0; }'")
	before := network(t)
	p, err := Attach(context.Background(), h, takeoverSpec(), testPort())
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(before, network(t)); diff != "" {
		t.Errorf("left behind:\n%s", diff)
	}
}

// newNamesHere are the names of the network in the test's namespace.
func newNamesHere(t *testing.T, h Host) names { return newNamesOf(t, h, takeoverSpec()) }

func newNamesOf(t *testing.T, h Host, spec Spec) names {
	t.Helper()
	id, err := instance(h.Runtime)
	if err != nil {
		t.Fatal(err)
	}
	return newNames(id, spec)
}

func linkIndex(t *testing.T, link string) (index int) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/sys/class/net", link, "ifindex"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(string(text), &index); err != nil {
		t.Fatal(err)
	}
	return index
}
