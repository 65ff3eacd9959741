package hoststate_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmrun/vmrun/integration/internal/hoststate"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
)

func TestMain(m *testing.M) {
	sandbox.Main()
	os.Exit(m.Run())
}

func snapshot(t *testing.T) string {
	t.Helper()
	text, err := hoststate.Snapshot("/run/vmrun")
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func sh(t *testing.T, script string) {
	t.Helper()
	if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// Every kind of change is seen, and is gone once undone.
func TestSnapshotSees(t *testing.T) {
	changes := []struct{ name, do, undo, word string }{
		{"link", "ip link add b1 type bridge", "ip link del b1", "b1: "},
		{"group", "ip link set b0 group 7", "ip link set b0 group 0", "group 7"},
		{"altname", "ip link property add dev b0 altname other", "ip link property del dev b0 altname other", "altname other"},
		{"promiscuity", "ip link set b0 promisc on", "ip link set b0 promisc off", "PROMISC"},
		{"address", "ip addr add 192.0.2.9/32 dev lo", "ip addr del 192.0.2.9/32 dev lo", "192.0.2.9"},
		{"route", "ip route add blackhole 198.51.100.0/24 table 77", "ip route del blackhole 198.51.100.0/24 table 77", "table 77"},
		{"rule", "ip rule add pref 5 table 77", "ip rule del pref 5", "lookup 77"},
		{"fdb", "bridge fdb add 02:00:00:00:00:09 dev b0 self local", "bridge fdb del 02:00:00:00:00:09 dev b0 self local", "02:00:00:00:00:09"},
		{"qdisc", "tc qdisc add dev b0 ingress", "tc qdisc del dev b0 ingress", "qdisc ingress"},
		{"nft", "nft add table inet own", "nft delete table inet own", "table inet own"},
		{"iptables", "iptables -t mangle -A OUTPUT -j ACCEPT", "iptables -t mangle -F OUTPUT", "-A OUTPUT -j ACCEPT"},
		{"chain", "iptables-legacy -N OWN", "iptables-legacy -X OWN", ":OWN - [*]"},
		{"policy", "iptables-legacy -P FORWARD DROP", "iptables-legacy -P FORWARD ACCEPT", ":FORWARD DROP"},
		{"forwarding", "echo 1 >/proc/sys/net/ipv4/conf/b0/forwarding", "echo 0 >/proc/sys/net/ipv4/conf/b0/forwarding", "b0/forwarding = 1"},
		{"process", "sleep 60 >/dev/null 2>&1 & echo $! >/run/pid", "kill $(cat /run/pid); tail --pid=$(cat /run/pid) -f /dev/null", "sleep 60"},
		{"file", "mkdir -p /run/vmrun/nets/lan; touch /run/vmrun/nets/lan/journal", "rm /run/vmrun/nets/lan/journal", "/run/vmrun/nets/lan/journal"},
	}
	sandbox.Run(t, func(t *testing.T) {
		sh(t, "ip link add b0 type bridge; ip link set b0 up; iptables -t mangle -S >/dev/null")
		before := snapshot(t)
		_, unreadable := os.ReadFile("/proc/net/ip_tables_names")
		for _, c := range changes {
			if unreadable != nil && strings.Contains(c.do, "legacy") {
				continue // its tables are told to real root alone
			}
			sh(t, c.do)
			if diff := hoststate.Diff(before, snapshot(t)); !strings.Contains(diff, c.word) {
				t.Errorf("%s: the difference lacks %q:\n%s", c.name, c.word, diff)
			}
			sh(t, c.undo)
			if diff := hoststate.Diff(before, snapshot(t)); diff != "" {
				t.Errorf("%s: a difference is left after the change was undone:\n%s", c.name, diff)
			}
		}
	})
}

func TestSnapshotSeesOwnFiles(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		before := snapshot(t)
		f, err := os.Create(filepath.Join(t.TempDir(), "forgotten"))
		if err != nil {
			t.Fatal(err)
		}
		if diff := hoststate.Diff(before, snapshot(t)); !strings.Contains(diff, "forgotten") {
			t.Errorf("the open file is not seen:\n%s", diff)
		}
		f.Close()
		if diff := hoststate.Diff(before, snapshot(t)); diff != "" {
			t.Errorf("a difference is left:\n%s", diff)
		}
	})
}

// Tables that a listing made are no difference.
func TestListingIsNoDifference(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		before := snapshot(t)
		sh(t, "for t in filter nat mangle raw; do iptables -t $t -S; iptables-legacy -t $t -S; done; nft add table ip nat")
		if diff := hoststate.Diff(before, snapshot(t)); diff != "" {
			t.Errorf("listing made a difference:\n%s", diff)
		}
	})
}

func TestWaitProcesses(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		before, err := hoststate.Processes()
		if err != nil {
			t.Fatal(err)
		}
		// The shell tells its own name, which it has got by then.
		sh(t, `mkfifo /run/up; setsid sh -c 'echo $$ >/run/pid; echo >/run/up; read -r never </run/up' stranger >/dev/null 2>&1 & read -r up </run/up`)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if err := hoststate.WaitProcesses(ctx, before); err == nil || !strings.Contains(err.Error(), "stranger") {
			t.Errorf("waiting beside a process: %v; want an error that names it", err)
		}
		sh(t, "kill $(cat /run/pid)")
		ctx, cancel = context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := hoststate.WaitProcesses(ctx, before); err != nil {
			t.Errorf("waiting for a killed process: %v", err)
		}
	})
}
