package netsetup

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
)

// usedUplink gives the test's host an uplink that it uses in every way that a
// take over moves, to a LAN with a gateway, which is a namespace named lan.
func usedUplink(t *testing.T) {
	t.Helper()
	lines := []string{
		"netns add lan",
		"link add eth0 type veth peer name far netns lan",
		"link set eth0 address 02:00:00:00:00:10",
		"-n lan link set lo up",
		"-n lan addr add 192.0.2.1/24 dev far",
		"-n lan addr add 2001:db8::1/64 dev far nodad",
		"-n lan addr add fe80::1/64 dev far nodad",
		"-n lan link set far up",
		"link set eth0 up",
		"addr add 192.0.2.2/24 brd + dev eth0 valid_lft 3600 preferred_lft 1800",
		"addr add 192.0.2.20/24 dev eth0 label eth0:1", // a secondary one
		"addr add 198.51.100.2/24 dev eth0 noprefixroute metric 50",
		"addr add 203.0.113.2 peer 203.0.113.3 dev eth0 scope link",
		"addr add 2001:db8::2/64 dev eth0 nodad",
		"addr add 2001:db8::20/64 dev eth0 nodad mngtmpaddr valid_lft 7200 preferred_lft 3600",
		"route add default via 192.0.2.1 metric 100",
		"route add 10.1.0.0/16 via 192.0.2.1 src 192.0.2.20 mtu lock 1400 advmss 1300",
		"route add 10.2.0.0/16 via 198.51.100.1 onlink dev eth0 table 100",
		"route add 10.3.0.0/16 nexthop via 192.0.2.1 dev eth0 weight 2 nexthop via 192.0.2.7 dev eth0",
		"route add 10.4.0.0/16 dev eth0 scope link proto static",
		"route add unreachable 10.5.0.0/16",
		"link add vpn type veth peer name farvpn",
		"link set vpn addrgenmode none",
		"link set farvpn addrgenmode none",
		"link set vpn up",
		"link set farvpn up",
		"route add 10.7.0.0/16 dev vpn src 192.0.2.2", // the kernel drops it with the address
		"-6 route add default via fe80::1 dev eth0 metric 512 expires 3000",
		"-6 route add 2001:db8:1::/48 via 2001:db8::1 dev eth0 pref high",
		"-6 route add 2001:db8:2::/48 nexthop via 2001:db8::1 dev eth0 weight 2 nexthop via 2001:db8::7 dev eth0",
		"rule add priority 500 iif eth0 lookup 100",
		"rule add priority 501 oif eth0 lookup 100",
		"-6 rule add priority 500 iif eth0 lookup 100",
		"neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent",
		"-6 neigh add 2001:db8::9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent",
		"neigh add proxy 192.0.2.77 dev eth0",
	}
	for _, line := range lines {
		ip(t, strings.Fields(line)...)
	}
	for key, value := range map[string]string{
		"ipv4/conf/eth0/rp_filter": "2", "ipv4/conf/eth0/arp_announce": "2", "ipv6/conf/eth0/accept_ra": "2",
		"ipv6/conf/eth0/hop_limit": "33", "ipv4/neigh/eth0/gc_stale_time": "77",
	} {
		if err := os.WriteFile("/proc/sys/net/"+key, []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	settleLinkLocal(t)
}

// settleLinkLocal waits until the uplink's own link-local address is no longer
// tentative, and its routes are there.
func settleLinkLocal(t *testing.T) {
	t.Helper()
	if !within(patience, func() bool {
		text := ip(t, "-6", "addr", "show", "dev", "eth0", "scope", "link")
		return strings.Contains(text, "fe80::") && !strings.Contains(text, "tentative")
	}) {
		t.Fatal("eth0's link-local address stays tentative")
	}
}

// noise is what changes by itself: remaining lifetimes, indexes, the flag of
// addresses that are just being probed.
var noise = regexp.MustCompile(`(?m)(valid_lft|preferred_lft|expires) \d+sec|if\d+:? |^\d+: | tentative`)

// network is all that the host has of IP on its links, as text.
func network(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, c := range []string{
		"ip -o link show eth0", "ip -o addr show dev eth0",
		"ip -4 route show table all", "ip -6 route show table all", "ip -4 rule", "ip -6 rule",
		"ip neigh show nud permanent", "ip neigh show proxy", "iptables -t filter -S", "iptables -t nat -S",
		"grep -r . /proc/sys/net/ipv4/conf/eth0 /proc/sys/net/ipv6/conf/eth0 /proc/sys/net/ipv4/neigh/eth0 /proc/sys/net/ipv6/neigh/eth0 2>/dev/null; true",
		"ls /sys/class/net", "nft list tables | grep vmrun_; true",
	} {
		out, err := exec.Command("sh", "-c", c).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", c, err, out)
		}
		fmt.Fprintf(&all, "== %s\n%s", c, noise.ReplaceAllString(string(out), "$1 "))
	}
	return all.String()
}

func takeoverSpec() Spec {
	return Spec{Name: "lan", Dir: "/home/me/web", Mode: Bridge, Uplink: "eth0", Takeover: true, HostAccess: HostAll}
}

// inLAN runs f in the LAN's namespace.
func inLAN(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		ns, err := netns.GetFromName("lan")
		if err == nil {
			err = netns.Set(ns)
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// session is a connection of somebody who works on the host over the uplink.
type session struct {
	near, far net.Conn
}

// newSession connects from the LAN to the host.
func newSession(t *testing.T, address string) *session {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var s session
	inLAN(t, func() { s.far, err = net.Dial("tcp", l.Addr().String()) })
	if err != nil {
		t.Fatal(err)
	}
	if s.near, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.near.Close(); s.far.Close() })
	return &s
}

// works fails the test unless bytes go both ways.
func (s *session) works(t *testing.T) {
	t.Helper()
	for _, way := range [][2]net.Conn{{s.far, s.near}, {s.near, s.far}} {
		got := make([]byte, 5)
		for _, c := range way {
			c.SetDeadline(time.Now().Add(20 * time.Second))
		}
		if _, err := way[0].Write([]byte("hello")); err != nil {
			t.Fatalf("the session ended: %v", err)
		}
		if _, err := io.ReadFull(way[1], got); err != nil || string(got) != "hello" {
			t.Fatalf("the session ended: %q, %v", got, err)
		}
	}
}

// watch sends byte after byte from the LAN to the host and back. The function that
// it returns ends that and tells how long the slowest took.
func (s *session) watch(t *testing.T) (slowest func() time.Duration) {
	t.Helper()
	for _, c := range []net.Conn{s.near, s.far} {
		c.SetDeadline(time.Now().Add(time.Minute))
	}
	stop, done := make(chan struct{}), make(chan error, 1)
	var most time.Duration
	go func() {
		for b := make([]byte, 1); ; {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			started := time.Now()
			for _, way := range [][2]net.Conn{{s.far, s.near}, {s.near, s.far}} {
				if _, err := way[0].Write(b); err != nil {
					done <- err
					return
				}
				if _, err := io.ReadFull(way[1], b); err != nil {
					done <- err
					return
				}
			}
			most = max(most, time.Since(started))
		}
	}()
	return func() time.Duration {
		close(stop)
		if err := <-done; err != nil {
			t.Errorf("the session ended: %v", err)
		}
		return most
	}
}

// TestTakeover: the bridge has all that the uplink had, and gives it back.
func TestTakeover(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	usedUplink(t)
	withEach(t, testTakeover)
}

func testTakeover(t *testing.T, h Host) {
	network(t) // iptables makes its tables on first use
	before := network(t)
	sessions := []*session{newSession(t, "192.0.2.2:0"), newSession(t, "[2001:db8::2]:0"), newSession(t, "[2001:db8::20]:0")}
	watched := []func() time.Duration{sessions[0].watch(t), sessions[1].watch(t)}
	p, err := Attach(context.Background(), h, takeoverSpec(), testPort())
	if err != nil {
		t.Fatalf("%v\n%s", err, keeperLogs(h))
	}
	for i, slowest := range watched {
		t.Logf("slowest round trip of session %d while the uplink was taken over: %v", i, slowest())
	}
	for _, s := range sessions {
		s.works(t)
	}
	during := network(t)
	watched = []func() time.Duration{sessions[0].watch(t), sessions[1].watch(t)}
	checkMoved(t, p.Bridge(), before)
	if during == before {
		t.Error("taking over changed nothing")
	}
	if err := p.Close(); err != nil {
		t.Errorf("%v\n%s", err, keeperLogs(h))
	}
	for i, slowest := range watched {
		t.Logf("slowest round trip of session %d while it was given back: %v", i, slowest())
	}
	for _, s := range sessions {
		s.works(t)
	}
	leftNothing(t, h, before, network)
	if left := others(t); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
}

// checkMoved compares what is on the bridge with what was on the uplink.
func checkMoved(t *testing.T, bridge, before string) {
	t.Helper()
	show := func(link string, args ...string) []string {
		text := ip(t, append(args, "dev", link)...)
		text = noise.ReplaceAllString(strings.ReplaceAll(text, bridge, "eth0"), "$1 ")
		lines := strings.Split(text, "\n")
		slices.Sort(lines)
		return lines
	}
	if link := ip(t, "link", "show", bridge); !strings.Contains(link, "02:00:00:00:00:10") {
		t.Errorf("the bridge has another MAC than its uplink:\n%s", link)
	}
	for _, line := range show(bridge, "-o", "addr", "show") {
		if !strings.Contains(before, line) {
			t.Errorf("the bridge has an address that eth0 had not: %s", line)
		}
	}
	if left := show("eth0", "-o", "addr", "show"); strings.Contains(strings.Join(left, "\n"), " global ") {
		t.Errorf("eth0 still has %s", left)
	}
	for _, want := range []string{"192.0.2.2/24", "192.0.2.20/24", "198.51.100.2/24", "203.0.113.2 peer", "2001:db8::2/64", "2001:db8::20/64", "fe80::ff:fe00:10/64"} {
		if !strings.Contains(ip(t, "addr", "show", "dev", bridge), want) {
			t.Errorf("%s is not on the bridge", want)
		}
	}
	for _, family := range []string{"-4", "-6"} {
		for line := range strings.Lines(ip(t, family, "route", "show", "table", "all", "dev", "eth0")) {
			if !strings.Contains(line, "fe80::") && !strings.HasPrefix(line, "multicast ff00::/8") {
				t.Errorf("a route still leads to eth0: %s", line)
			}
		}
	}
}
