package netsetup

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// inNetns is a command of a namespace made with `ip netns`.
func inNetns(name string, args ...string) error {
	return exec.Command("ip", append([]string{"netns", "exec", name}, args...)...).Run()
}

func ping(from, to string) error { return inNetns(from, "busybox", "ping", "-c", "1", "-W", "2", to) }

// neighbour adds a namespace with a leg in a bridge of the host or, without one,
// a link to the host itself.
func neighbour(t *testing.T, name, address, gateway, bridge string) {
	t.Helper()
	ip(t, "netns", "add", name)
	ip(t, "link", "add", name+"0", "type", "veth", "peer", "name", "eth0", "netns", name)
	ip(t, "link", "set", name+"0", "up")
	if bridge != "" {
		ip(t, "link", "set", name+"0", "master", bridge)
	}
	ip(t, "-n", name, "addr", "add", address, "dev", "eth0")
	ip(t, "-n", name, "link", "set", "eth0", "up")
	if gateway != "" {
		ip(t, "-n", name, "route", "add", "default", "via", gateway)
	}
	if bridge != "" && !within(10*time.Second, func() bool { return forwards(name + "0") }) {
		t.Fatalf("%s0 does not become a port of %s that forwards", name, bridge)
	}
}

// forwards tells whether a port of a bridge passes frames on: the kernel may take
// a second to notice that the other end is up (linkwatch), and drops them before.
func forwards(port string) bool {
	const forwarding = "3" // BR_STATE_FORWARDING
	state, err := os.ReadFile("/sys/class/net/" + port + "/brport/state")
	return err == nil && strings.TrimSpace(string(state)) == forwarding
}

// TestOthersTraffic: while a NAT network is up, the host does not route for its
// neighbours unless somebody wants it to, and what others have on a bridge with
// the host's address passes.
func TestOthersTraffic(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	ip(t, "link", "add", "br0", "type", "bridge")
	ip(t, "link", "set", "br0", "up")
	ip(t, "addr", "add", "192.0.2.2/24", "dev", "br0")
	neighbour(t, "a", "192.0.2.10/24", "192.0.2.2", "br0")
	neighbour(t, "b", "192.0.2.11/24", "", "br0")
	neighbour(t, "c", "198.51.100.10/24", "198.51.100.2", "")
	ip(t, "addr", "add", "198.51.100.2/24", "dev", "c0")
	exec.Command("modprobe", "br_netfilter").Run()
	os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte("1"), 0) // where the kernel has it
	withEach(t, func(t *testing.T, h Host) {
		before := forwarding(t)

		p, err := Attach(context.Background(), h, specs()["nat"], testPort())
		if err != nil {
			t.Fatal(err)
		}
		if err := ping("a", "192.0.2.11"); err != nil {
			t.Errorf("a bridge's own machines don't reach each other: %v", err)
		}
		if err := ping("a", "198.51.100.10"); err == nil {
			t.Error("the host routes for its neighbours")
		}
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
			t.Fatal(err)
		}
		passes := func() bool { return ping("a", "198.51.100.10") == nil }
		if !within(5*time.Second, passes) {
			t.Errorf("somebody made the host a router, and it does not route:\n%s", keeperLogs(h))
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if !passes() {
			t.Error("the host routes no more after the network has gone")
		}
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, forwarding(t)); diff != "" {
			t.Errorf("forwarding is not as before:\n%s", diff)
		}
	})
}

// within tries until something holds or time is up. What is waited for gets the
// processor in between.
func within(limit time.Duration, holds func() bool) bool {
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); <-again.C {
		if holds() {
			return true
		}
	}
	return holds()
}

func forwarding(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", "grep . /proc/sys/net/ipv4/conf/*/forwarding; iptables -S").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// TestSweepWaitsForAChild: a process that outlived its keeper and is still at
// the rules holds the lock; a sweep waits for it instead of finding nothing.
func TestSweepWaitsForAChild(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	h := testHost(t)
	dir := filepath.Join(netsFolder(h.Runtime), "lan")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	j, err := openJournal(dir, h.log())
	if err != nil {
		t.Fatal(err)
	}
	ip(t, "link", "add", "vmrx", "group", "77", "type", "bridge")
	if err := j.record(delLinks{Group: 77, Names: []string{"vmrx"}}); err != nil {
		t.Fatal(err)
	}
	child, err := lockFile(filepath.Join(dir, "lock"), unix.LOCK_EX)
	if err != nil {
		t.Fatal(err)
	}
	swept := make(chan []string, 1)
	go func() {
		report, err := Sweep(context.Background(), h)
		if err != nil {
			t.Error(err)
		}
		swept <- report
	}()
	select {
	case report := <-swept:
		t.Errorf("the sweep did not wait: %q", report)
	case <-time.After(200 * time.Millisecond):
	}
	child.Close()
	if report := <-swept; len(report) != 1 || !strings.Contains(report[0], "delete vmrx") {
		t.Errorf("swept %q", report)
	}
}

// TestAttachCancelled: who loses patience gets the host back all the same,
// before Attach returns.
func TestAttachCancelled(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	uplinks(t)
	withEach(t, func(t *testing.T, h Host) {
		hostState(t)
		before := hostState(t)
		for _, after := range []time.Duration{1, 5, 10, 15, 20, 25, 30, 40} {
			ctx, cancel := context.WithTimeout(context.Background(), after*time.Millisecond)
			p, err := Attach(ctx, h, specs()["nat"], testPort())
			cancel()
			if err == nil {
				if err := p.Close(); err != nil {
					t.Error(err)
				}
			} else if !strings.Contains(err.Error(), context.DeadlineExceeded.Error()) {
				t.Errorf("after %v: %v", after, err)
			}
			for _, pid := range keepers(t) {
				awaitEnd(t, pid, 0) // one that nobody has asked for anything ends by itself
			}
			if diff := cmp.Diff(before, hostState(t)); diff != "" {
				t.Errorf("after %v ms, left behind:\n%s\n%s", after, diff, keeperLogs(h))
			}
		}
	})
}

func TestKeeperCommand(t *testing.T) {
	h := Host{Executable: "/bin/vmrun", Runtime: "/run/vmrun", State: "/var/lib/vmrun"}
	keeper := []string{"/bin/vmrun", "keeper", "--runtime", "/run/vmrun", "--state", "/var/lib/vmrun", "--network", "lan"}
	if diff := cmp.Diff(keeper, keeperCommand(h, "/run/vmrun/nets/lan", "")); diff != "" {
		t.Error(diff)
	}
	h.Firewall = "iptables"
	if diff := cmp.Diff(append(keeper, "--firewall", "iptables"), keeperCommand(h, "/run/vmrun/nets/lan", "")); diff != "" {
		t.Error(diff)
	}
	h.Firewall = ""
	scope := []string{"/bin/systemd-run", "--scope", "--quiet", "--collect", "--description=vmrun network lan", "--"}
	if diff := cmp.Diff(append(scope, keeper...), keeperCommand(h, "/run/vmrun/nets/lan", "/bin/systemd-run")); diff != "" {
		t.Error(diff)
	}
}
