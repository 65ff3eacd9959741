package netsetup

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// leaseLAN gives the test's host an uplink without addresses to a LAN with a DHCP
// server and a router that advertises itself. What the server says comes by the
// channel; ending it is the caller's or the test's.
func leaseLAN(t *testing.T) (*exec.Cmd, <-chan string) {
	t.Helper()
	if _, err := exec.LookPath("dnsmasq"); err != nil {
		skip(t, "dnsmasq", "needs dnsmasq")
	}
	for _, line := range []string{
		"netns add lan",
		"link add eth0 type veth peer name far netns lan",
		"link set eth0 address 02:00:00:00:00:10",
		"-n lan link set lo up",
		"-n lan addr add 192.0.2.1/24 dev far",
		"-n lan addr add 2001:db8:5::1/64 dev far nodad",
		"-n lan link set far up",
	} {
		ip(t, strings.Fields(line)...)
	}
	dir := t.TempDir()
	// The least lease that dnsmasq gives is 2 minutes; T1 makes clients come back
	// in 10 seconds, the least of that.
	cmd := exec.Command("ip", "netns", "exec", "lan", "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--log-facility=-",
		"--port=0", "--user=root", "--group=", "--bind-interfaces", "--interface=far", "--no-ping",
		"--pid-file="+filepath.Join(dir, "pid"), "--dhcp-leasefile="+filepath.Join(dir, "leases"),
		"--dhcp-authoritative", "--dhcp-range=192.0.2.100,192.0.2.199,255.255.255.0,2m", "--dhcp-option=option:T1,10",
		"--enable-ra", "--dhcp-range=2001:db8:5::,ra-only,64,3600", "--ra-param=far,high,60,1800")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := make(chan string, 1000)
	go func() {
		defer close(said)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			said <- lines.Text()
		}
	}()
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	await(t, said, "IP range 192.0.2.100")
	return cmd, said
}

// await waits until the server has said something.
func await(t *testing.T, said <-chan string, what string) {
	t.Helper()
	var all []string
	limit := time.After(30 * time.Second)
	for {
		select {
		case line, ok := <-said:
			if strings.Contains(line, what) {
				return
			}
			if all = append(all, line); !ok {
				t.Fatalf("the server ended without %q:\n%s", what, strings.Join(all, "\n"))
			}
		case <-limit:
			t.Fatalf("the server did not say %q:\n%s", what, strings.Join(all, "\n"))
		}
	}
}

// lease gets an address as hosts do, by a client that knows its lifetime, and
// makes it shorter than what the server would give anew.
func lease(t *testing.T, valid int) string {
	t.Helper()
	script := filepath.Join(t.TempDir(), "script")
	text := `#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/$mask dev $interface valid_lft $lease preferred_lft $lease
ip route add default via $router dev $interface proto dhcp metric 10
`
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	sh(t, "sysctl -qw net.ipv6.conf.eth0.accept_ra=0") // another test's matter
	ip(t, "link", "set", "eth0", "up")
	sh(t, "udhcpc -i eth0 -n -q -f -s "+script)
	address := strings.Fields(ip(t, "-br", "-4", "addr", "show", "dev", "eth0"))[2]
	ip(t, "addr", "change", address, "dev", "eth0", "valid_lft", fmt.Sprint(valid), "preferred_lft", fmt.Sprint(valid))
	return address
}

// lasts tells for how long the only IPv4 address of a link still counts.
func lasts(t *testing.T, link string) (seconds int) {
	t.Helper()
	_, rest, _ := strings.Cut(ip(t, "-4", "addr", "show", "dev", link), "valid_lft ")
	if _, err := fmt.Sscanf(rest, "%dsec", &seconds); err != nil {
		t.Fatalf("%q: %v", rest, err)
	}
	return seconds
}

// TestLeaseIsRenewed: the host's lease is renewed on the bridge, at once and then
// as the server wants it, and comes back so.
func TestLeaseIsRenewed(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	_, said := leaseLAN(t)
	h := testHost(t)
	address := lease(t, 50)
	await(t, said, "DHCPACK(far)")
	settleLinkLocal(t)
	network(t)
	before := network(t)
	s := newSession(t, strings.TrimSuffix(address, "/24")+":0")
	p, err := Attach(context.Background(), h, takeoverSpec(), testPort())
	if err != nil {
		t.Fatalf("%v\n%s", err, keeperLogs(h))
	}
	for range 2 { // at once, and at T1
		await(t, said, "DHCPACK(far) "+strings.TrimSuffix(address, "/24")+" 02:00:00:00:00:10")
	}
	s.works(t)
	if left := lasts(t, p.Bridge()); left < 60 {
		t.Errorf("the lease on the bridge lasts %d s, want that of the server\n%s", left, keeperLogs(h))
	}
	if err := p.Close(); err != nil {
		t.Errorf("%v\n%s", err, keeperLogs(h))
	}
	s.works(t)
	if left := lasts(t, "eth0"); left < 60 {
		t.Errorf("the lease on the uplink lasts %d s, want what was renewed", left)
	}
	leftNothing(t, h, before, network)
}

// TestRenewedLeaseOfADeletedBridge: what was renewed counts also where the bridge
// is gone, and with it the address.
func TestRenewedLeaseOfADeletedBridge(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	server, said := leaseLAN(t)
	h := testHost(t)
	const first = 9 // seconds, less than T1
	address := lease(t, first)
	await(t, said, "DHCPACK(far)")
	settleLinkLocal(t)
	network(t)
	before := network(t)
	s := newSession(t, strings.TrimSuffix(address, "/24")+":0")
	p, err := Attach(context.Background(), h, takeoverSpec(), testPort())
	if err != nil {
		t.Fatalf("%v\n%s", err, keeperLogs(h))
	}
	for range 2 { // at once, and when the first lease has ended
		await(t, said, "DHCPACK(far) "+strings.TrimSuffix(address, "/24")+" 02:00:00:00:00:10")
	}
	ip(t, "link", "del", p.Bridge())
	s.works(t)
	if left := lasts(t, "eth0"); left < 60 {
		t.Errorf("the lease on the uplink lasts %d s, want what was renewed", left)
	}
	if err := p.Close(); err != nil {
		t.Errorf("%v\n%s", err, keeperLogs(h))
	}
	server.Process.Kill()
	server.Wait()
	awaitAlone(t)
	leftNothing(t, h, before, network)
}

// TestLeaseIsLost: a lease that nobody renews ends the network, so that the host
// has its uplink for its own client.
func TestLeaseIsLost(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	server, said := leaseLAN(t)
	h := testHost(t)
	lease(t, 100)
	await(t, said, "DHCPACK(far)")
	server.Process.Kill()
	server.Wait()
	ip(t, "addr", "flush", "dev", "eth0", "scope", "global")
	ip(t, "addr", "add", "192.0.2.100/24", "dev", "eth0", "valid_lft", "10", "preferred_lft", "10")
	ip(t, "addr", "add", "198.51.100.50/24", "dev", "eth0")
	p, err := Attach(context.Background(), h, takeoverSpec(), testPort())
	if err != nil {
		t.Fatalf("%v\n%s", err, keeperLogs(h))
	}
	if !within(time.Minute, func() bool { return strings.Contains(keeperLogs(h), "lost the host's lease") }) {
		t.Fatalf("the lease was not lost\n%s", keeperLogs(h))
	}
	awaitAlone(t)
	if link := ip(t, "link", "show", "eth0"); strings.Contains(link, "master") {
		t.Errorf("the uplink is still in the bridge: %s\n%s", link, keeperLogs(h))
	}
	if addresses := ip(t, "addr", "show", "dev", "eth0"); !strings.Contains(addresses, "198.51.100.50/24") {
		t.Errorf("the static address did not come back: %s", addresses)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// TestAdvertisedAddresses: addresses and routes that a router has advertised move
// with their lifetimes, and its advertisements count on the bridge.
func TestAdvertisedAddresses(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	_, said := leaseLAN(t)
	h := testHost(t)
	address := advertised(t)
	await(t, said, "RTR-ADVERT(far)")
	before := network(t)
	s := newSession(t, "["+address+"]:0")
	p, err := Attach(context.Background(), h, takeoverSpec(), testPort())
	if err != nil {
		t.Fatalf("%v\n%s", err, keeperLogs(h))
	}
	s.works(t)
	shorten := func(link string) {
		ip(t, "addr", "change", address+"/64", "dev", link, "mngtmpaddr", "valid_lft", "7300", "preferred_lft", "100")
	}
	shorten(p.Bridge())
	awaitNews(t, "the bridge's address is prolonged", func() bool {
		return strings.Contains(ip(t, "-6", "addr", "show", "dev", p.Bridge()), "preferred_lft 3")
	})
	if got := ip(t, "-6", "addr", "show", "dev", p.Bridge(), "scope", "global"); strings.Count(got, "inet6") != 1 {
		t.Errorf("the bridge has other addresses than the uplink had:\n%s", got)
	}
	if got := ip(t, "-6", "route", "show", "default"); strings.Count(got, "default") != 1 {
		t.Errorf("the bridge's routes to the router:\n%s", got)
	}
	if err := p.Close(); err != nil {
		t.Errorf("%v\n%s", err, keeperLogs(h))
	}
	s.works(t)
	// Until the next advertisement, which was asked for, another route stands for
	// the kernel's own.
	awaitNews(t, "the kernel's own route to the router is back", func() bool { return cmp.Equal(before, network(t)) })
}

// advertised brings the uplink up and waits for the address that a router's
// advertisement gives it.
func advertised(t *testing.T) string {
	t.Helper()
	for _, args := range [][]string{{"addr", "add", "192.0.2.2/24", "dev", "eth0"}, {"link", "set", "eth0", "up"}} {
		ip(t, args...)
	}
	settleLinkLocal(t)
	var address string
	awaitNews(t, "a router has advertised a prefix", func() bool {
		text := ip(t, "-o", "-6", "addr", "show", "dev", "eth0", "scope", "global")
		if words := strings.Fields(text); len(words) > 3 && !strings.Contains(text, "tentative") {
			address = strings.TrimSuffix(words[3], "/64")
		}
		return address != ""
	})
	return address
}

// awaitNews follows the host's IPv6 until something holds. dnsmasq advertises itself
// again and again in its first minute.
func awaitNews(t *testing.T, what string, done func() bool) {
	t.Helper()
	if !within(time.Minute, done) {
		t.Fatalf("in a minute it has not come about that %s\n%s", what, ip(t, "-6", "route", "show"))
	}
}
