package integration

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
	"github.com/vmrun/vmrun/integration/internal/world"
)

// Tests of this file's kind set up for real what else may be on a host. Each
// shows first that it is in force, by what it forbids to others.

// besideOthers runs a test on a host where vmrun chooses what carries its rules,
// which is nftables with, where others' iptables stop what they do not know, the
// same in there; and on one where iptables carries all of them. By nftables alone,
// which somebody may ask for, others' iptables are left as they are.
func besideOthers(t *testing.T, f func(t *testing.T, h *host), features ...string) {
	t.Helper()
	for name, firewall := range map[string]string{"auto": "", "iptables": "iptables"} {
		t.Run(name, func(t *testing.T) {
			sandbox.Run(t, func(t *testing.T) {
				feature.Needs(t, append(append(bootFeatures, "tun", "iptables"), features...)...)
				f(t, newHostWith(t, firewall))
			})
		})
	}
}

// carried fails the test unless the networks' rules are carried by what the host
// was made for.
func (h *host) carried(t *testing.T) {
	t.Helper()
	logs := h.logs()
	nft, ipt := strings.Contains(logs, "add firewall rules (nftables)"), strings.Contains(logs, "add firewall rules (iptables)")
	if h.firewall == "iptables" && (nft || !ipt) || h.firewall == "" && !nft {
		t.Errorf("with firewall %q, rules by nftables: %v, by iptables: %v", h.firewall, nft, ipt)
	}
}

// restoreRules feeds iptables-restore, as an administrator's script does.
func restoreRules(t *testing.T, rules string) {
	t.Helper()
	cmd := exec.Command("iptables-restore", "--noflush", "--wait")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("iptables-restore: %v: %s", err, out)
	}
}

// writeSetting sets a sysctl.
func writeSetting(t *testing.T, key, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

// newBystander is a machine behind a link of the host's that is no concern of
// vmrun's, with the host as its router. The LAN's gateway knows the way back.
func newBystander(t *testing.T, h *host, lan *world.LAN) *sandbox.Namespace {
	t.Helper()
	ns := sandbox.NewNamespace(t)
	world.Wire(t, h.Namespace, "other0", ns, "eth0")
	world.SetUp(t, h.Namespace, "other0", "198.51.100.1/24")
	world.SetUp(t, ns, "eth0", "198.51.100.2/24")
	world.Settle(t, h.Namespace, "other0")
	world.Route(t, ns, "0.0.0.0/0", "198.51.100.1")
	world.Route(t, lan.Gateway, "198.51.100.0/24", world.Host)
	return ns
}

// What vmrun puts back may be gone so long: comesBack at most, whatever else the
// host does, and soonBack on one that does nothing else, which the long form judges.
const (
	comesBack = 10 * time.Second
	soonBack  = time.Second
)

// asksUntil has a guest that runs reachScript try an address until it reaches it,
// and returns how long that took.
func (m *machine) asksUntil(t *testing.T, address string) time.Duration {
	t.Helper()
	began := time.Now()
	for {
		m.say(t, address)
		got := m.expect(t, `answer: \S+ (yes|no)\n`)
		switch took := time.Since(began); {
		case got[1] == "yes":
			return took
		case took > sandbox.Slowed(comesBack):
			t.Errorf("the guest does not reach %s, after %v", address, took)
			return took
		}
	}
}

// eventually waits until a condition on a host's links holds.
func (h *host) eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	if !h.until(t, time.After(sandbox.Slowed(patience)), holds) {
		t.Fatalf("waited in vain: %s", what)
	}
}

// until tells whether a condition on a host's links comes to hold before the
// limit, looking again at each news of them.
func (h *host) until(t *testing.T, limit <-chan time.Time, holds func() bool) bool {
	t.Helper()
	handle := netns.NsHandle(h.File().Fd())
	links, addresses, done := make(chan netlink.LinkUpdate, 64), make(chan netlink.AddrUpdate, 64), make(chan struct{})
	defer close(done)
	if err := netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{Namespace: &handle}); err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrSubscribeWithOptions(addresses, done, netlink.AddrSubscribeOptions{Namespace: &handle}); err != nil {
		t.Fatal(err)
	}
	again := time.NewTicker(200 * time.Millisecond) // sysctls have no news
	defer again.Stop()
	for !holds() {
		select {
		case <-links:
		case <-addresses:
		case <-again.C:
		case <-limit:
			return false
		}
	}
	return true
}

// udhcpc asks once for a lease on a link, which it does not use.
func udhcpc(link string) (string, error) {
	out, err := exec.Command("busybox", "udhcpc", "-i", link, "-n", "-q", "-f", "-t", "5", "-T", "2", "-s", "/bin/true").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("udhcpc: %w: %s", err, out)
	}
	return string(out), nil
}
