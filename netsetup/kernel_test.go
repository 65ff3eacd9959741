package netsetup

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func testHost(t *testing.T) Host {
	t.Helper()
	dir := t.TempDir()
	return Host{Executable: os.Args[0], Runtime: filepath.Join(dir, "run"), State: filepath.Join(dir, "state"),
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
}

// withEach runs a test on the kernel with each backend that carries rules.
func withEach(t *testing.T, f func(t *testing.T, h Host)) {
	t.Helper()
	for _, b := range []string{"nftables", "iptables"} {
		t.Run(b, func(t *testing.T) {
			h := testHost(t)
			h.Firewall = b
			f(t, h)
		})
	}
}

// hostState is the host as its own tools show it.
func hostState(t *testing.T) string {
	t.Helper()
	var all string
	for _, c := range []string{
		"ip -br link | awk '{print $1, $3}'; ip -br -4 addr | awk '{print $1, $3}'; ip -4 route show table all | sed 's/ *linkdown//; s/ *$//'; ip rule",
		"iptables -t filter -S; iptables -t nat -S",
		"nft list tables | grep -vx -e 'table ip filter' -e 'table ip nat' -e 'table inet firewalld' | while read -r t; do nft -s list $t; done",
		"cat /proc/sys/net/ipv4/conf/*/forwarding /proc/sys/net/ipv4/ip_forward",
	} {
		out, err := exec.Command("sh", "-c", c).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", c, err, out)
		}
		all += string(out)
	}
	return all + fmt.Sprint("keepers ", keepers(t))
}

// uplinkedHost is a host with uplinks, and its state before the test. The first look at it
// has nft and iptables make what they make at first use.
func uplinkedHost(t *testing.T) (h Host, before string) {
	t.Helper()
	uplinks(t)
	h = testHost(t)
	hostState(t)
	return h, hostState(t)
}

func uplinks(t *testing.T) {
	t.Helper()
	for _, l := range []string{"eth1", "eth2"} {
		ip(t, "link", "add", l, "type", "veth", "peer", "name", "far"+l)
		ip(t, "link", "set", l, "up")
		ip(t, "link", "set", "far"+l, "up")
	}
	ip(t, "addr", "add", "192.0.2.2/24", "dev", "eth1")
	ip(t, "route", "add", "default", "via", "192.0.2.1")
	ip(t, "link", "add", "br0", "type", "bridge")
	ip(t, "link", "add", "port", "type", "veth", "peer", "name", "farport")
	for _, l := range []string{"port", "farport"} {
		ip(t, "link", "set", l, "up")
	}
	ip(t, "link", "set", "port", "master", "br0")
	ip(t, "link", "set", "br0", "up")
}

// gateway puts the far end of eth1 into a namespace that answers for it.
func gateway(t *testing.T) {
	t.Helper()
	ip(t, "netns", "add", "lan")
	ip(t, "link", "set", "fareth1", "netns", "lan")
	for _, args := range []string{"link set lo up", "link set fareth1 up", "addr add 192.0.2.1/24 dev fareth1"} {
		ip(t, append([]string{"-n", "lan"}, strings.Fields(args)...)...)
	}
}

// TestUpAndDownOnKernel is TestUpAndDown with a real kernel and keeper.
func TestUpAndDownOnKernel(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	uplinks(t)
	gateway(t)
	withEach(t, func(t *testing.T, h Host) {
		for name, spec := range specs() {
			if spec.Mode == VLAN {
				continue // package integration has a kernel for it
			}
			hostState(t) // iptables makes its tables on first use
			before := hostState(t)
			p, err := Attach(context.Background(), h, spec, testPort())
			if err != nil {
				t.Errorf("%s: %v\n%s", name, err, keeperLogs(h))
				continue
			}
			if during := hostState(t); during == before {
				t.Errorf("%s: attaching changed nothing", name)
			}
			t.Logf("%s: %s on %s, address %s, MTU %d", name, p.Link(), p.Bridge(), p.IP(), p.MTU())
			if err := p.Close(); err != nil {
				t.Errorf("%s: close: %v", name, err)
			}
			if diff := cmp.Diff(before, hostState(t)); diff != "" {
				t.Errorf("%s: left behind:\n%s", name, diff)
			}
		}
	})
}

// leftNothing fails the test unless the host looks as before.
func leftNothing(t *testing.T, h Host, before string, look func(*testing.T) string) {
	t.Helper()
	if diff := cmp.Diff(before, look(t)); diff != "" {
		t.Errorf("left behind:\n%s\n%s", diff, keeperLogs(h))
	}
}

func keeperLogs(h Host) string {
	var all string
	logs, _ := filepath.Glob(h.Runtime + "/nets/*/keeper.log")
	for _, l := range logs {
		text, _ := os.ReadFile(l)
		all += string(text)
	}
	return all
}
