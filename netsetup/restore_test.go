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

	"github.com/vmrun/vmrun/netsetup/firewall"
)

// shell runs a line in the test's namespaces.
func shell(t *testing.T, line string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", line).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

// useLegacy makes legacy iptables this namespace's choice.
func useLegacy(t *testing.T) {
	t.Helper()
	nft, err := filepath.EvalSymlinks("/usr/sbin/iptables-nft")
	if err != nil {
		t.Fatal(err)
	}
	legacy, err := filepath.EvalSymlinks("/usr/sbin/iptables-legacy")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(legacy, nft, "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("make iptables a legacy one: %v", err)
	}
}

// ruleText is all rules of the namespace, without counters. Those of iptables are
// sorted: jumps that were put back may come in another order.
func ruleText(t *testing.T) string {
	t.Helper()
	return shell(t, "nft list tables | grep -vx -e 'table ip filter' -e 'table ip nat' | while read -r t; do nft -s list $t; done;"+
		"for t in filter nat; do iptables-save -t $t | grep -v ^# | sed 's/ \\[.*//' | sort; done")
}

// backs are how often a keeper has said that it put rules back.
func backs(h Host) int { return strings.Count(keeperLogs(h), "they are back") }

// table is the lasting table of nftables, to be named in commands.
func table(p *Port) string { return firewall.Table(strings.TrimPrefix(p.Bridge(), bridgePrefix)) }

// TestRulesComeBack: whoever takes rules away, and however, they come back, and
// the log has one line about it.
func TestRulesComeBack(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	uplinks(t)
	ways := []struct{ name, backend, do string }{
		{"flush ruleset", "nftables", "nft flush ruleset"},
		{"delete table", "nftables", "nft delete table ip $TABLE"},
		{"flush table", "nftables", "nft flush table ip $TABLE"},
		{"flush chain", "nftables", "nft flush chain ip $TABLE fwd_net"},
		{"make a hole", "nftables", "nft insert rule ip $TABLE in_net accept"},
		{"switch off", "nftables", "nft add table ip $TABLE '{ flags dormant; }'"},
		{"forget a link", "nftables", "nft flush set ip $TABLE transit"},
		{"flush ruleset", "iptables", "nft flush ruleset"},
		{"flush filter", "iptables", "iptables -F"},
		{"flush nat", "iptables", "iptables -t nat -F"},
		{"flush and delete", "iptables", "iptables -F; iptables -X || true"},
		{"delete a jump", "iptables", "iptables -D INPUT 1"},
		{"restore", "iptables", `printf '*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\nCOMMIT\n' | iptables-restore`},
	}
	for _, way := range ways {
		t.Run(way.backend+" "+way.name, func(t *testing.T) { takeAway(t, way.backend, way.do, 2) })
	}
	useLegacy(t)
	for _, way := range ways {
		if way.backend == "iptables" && !strings.HasPrefix(way.do, "nft") {
			t.Run("legacy "+way.name, func(t *testing.T) { takeAway(t, way.backend, way.do, 3) })
		}
	}
}

func takeAway(t *testing.T, backend, do string, times int) {
	h := testHost(t)
	h.Firewall = backend
	hostState(t)
	before := hostState(t)
	p, err := Attach(context.Background(), h, specs()["nat"], testPort())
	if err != nil {
		t.Fatal(err)
	}
	want, do := ruleText(t), "TABLE="+table(p)+"; "+do
	// A keeper looks at everything when it has begun: that it goes on to look, and
	// does so after it has put something back, is shown by the second time. At the
	// third, legacy iptables look as they did when it looked last.
	for range times {
		comesBack(t, h, want, do)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(before, hostState(t)); diff != "" {
		t.Errorf("left behind:\n%s", diff)
	}
}

// comesBack takes rules away and awaits those that are wanted, in time and told
// in one line.
func comesBack(t *testing.T, h Host, want, do string) {
	t.Helper()
	told := backs(h)
	shell(t, do)
	gone := time.Now()
	if !within(10*time.Second, func() bool { return ruleText(t) == want }) {
		t.Errorf("the rules are not back (-want +got):\n%s\n%s", cmp.Diff(want, ruleText(t)), keeperLogs(h))
	}
	took := time.Since(gone)
	t.Logf("back after %v", took)
	if took > rulesLimit() {
		t.Errorf("back after %v, want %v", took, rulesLimit())
	}
	if !within(10*time.Second, func() bool { return backs(h) > told }) || backs(h) > told+1 && !strings.Contains(do, "-X") {
		t.Errorf("told %d times, want once:\n%s", backs(h)-told, keeperLogs(h))
	}
}

// TestOwnChangesAreNoLoss: what the keeper changes itself, and what others change
// elsewhere, makes it restore nothing.
func TestOwnChangesAreNoLoss(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	uplinks(t)
	withEach(t, func(t *testing.T, h Host) {
		p, err := Attach(context.Background(), h, specs()["nat"], testPort())
		if err != nil {
			t.Fatal(err)
		}
		for i := range 4 {
			other, err := Attach(context.Background(), h, specs()["nat"], portOf(i))
			if err != nil {
				t.Fatal(err)
			}
			shell(t, "iptables -A OUTPUT -j ACCEPT; iptables -D OUTPUT -j ACCEPT; nft add table ip other; nft delete table ip other")
			ip(t, "link", "add", "way", "type", "veth", "peer", "name", "out") // a new way out
			ip(t, "addr", "add", "198.51.100.2/24", "dev", "way")
			ip(t, "link", "set", "way", "up")
			ip(t, "link", "del", "way")
			if err := other.Close(); err != nil {
				t.Error(err)
			}
		}
		if err := p.Close(); err != nil { // it waits for whatever the keeper is at
			t.Error(err)
		}
		if n := backs(h); n > 0 {
			t.Errorf("restored %d times:\n%s", n, keeperLogs(h))
		}
	})
}

// TestAdversary: somebody who never stops taking the rules away keeps the keeper
// from nothing else, and does not fill its log.
func TestAdversary(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	uplinks(t)
	withEach(t, func(t *testing.T, h Host) {
		hostState(t)
		before := hostState(t)
		p, err := Attach(context.Background(), h, specs()["nat"], testPort())
		if err != nil {
			t.Fatal(err)
		}
		started, rounds := time.Now(), 0
		for time.Since(started) < 3*time.Second {
			shell(t, "nft flush ruleset; iptables -F; iptables -t nat -F")
			rounds++
		}
		limit := int(time.Since(started)/restorePause) + 1
		other, err := Attach(context.Background(), h, specs()["nat"], portOf(1))
		if err != nil {
			t.Fatal(err)
		}
		if n := backs(h); n == 0 || n > limit {
			t.Errorf("%d times taken away, %d times back, want 1 to %d", rounds, n, limit)
		}
		for _, p := range []*Port{p, other} {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		}
		if diff := cmp.Diff(before, hostState(t)); diff != "" {
			t.Errorf("left behind:\n%s", diff)
		}
	})
}

// TestOthersFilter: iptables of others with a DROP policy, of either kind, there
// before the network or started later, let pass what nftables does; whoever
// wants nftables alone leaves them as they are.
func TestOthersFilter(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	uplinks(t)
	for _, kind := range []string{"iptables-nft", "iptables-legacy"} {
		drop := kind + " -N DOCKER-USER; " + kind + " -I FORWARD -j DOCKER-USER; " + kind + " -P FORWARD DROP; " + kind + " -P INPUT DROP"
		calm := kind + " -P FORWARD ACCEPT; " + kind + " -P INPUT ACCEPT; " + kind + " -F; " + kind + " -X"
		accepts := func() bool { return strings.Contains(shell(t, kind+"-save"), "VMR-") }
		t.Run(kind+" before", func(t *testing.T) {
			h := testHost(t)
			shell(t, drop)
			p, err := Attach(context.Background(), h, specs()["nat"], testPort())
			if err != nil {
				t.Fatal(err)
			}
			if saved := shell(t, kind+"-save"); !strings.Contains(saved, "-A DOCKER-USER -i "+p.Bridge()) || !strings.Contains(saved, "-A INPUT -i "+p.Bridge()) {
				t.Errorf("no accepts:\n%s", saved)
			}
			shell(t, kind+" -F")
			if !within(10*time.Second, func() bool { return strings.Contains(shell(t, kind+"-save"), "-A INPUT -i "+p.Bridge()) }) {
				t.Errorf("the accepts are not back:\n%s", keeperLogs(h))
			}
			closeAndCalm(t, p, accepts, calm)
		})
		t.Run(kind+" later", func(t *testing.T) {
			h := testHost(t)
			p, err := Attach(context.Background(), h, specs()["nat"], testPort())
			if err != nil {
				t.Fatal(err)
			}
			if accepts() {
				t.Error("accepts in iptables that nobody uses")
			}
			shell(t, drop)
			if !within(10*time.Second, accepts) {
				t.Errorf("no accepts:\n%s", keeperLogs(h))
			}
			closeAndCalm(t, p, accepts, calm)
		})
		t.Run(kind+" left alone", func(t *testing.T) {
			h := testHost(t)
			shell(t, drop)
			spec := specs()["nat"]
			spec.Firewall = "nftables"
			p, err := Attach(context.Background(), h, spec, testPort())
			if err != nil {
				t.Fatal(err)
			}
			if accepts() {
				t.Error("accepts in spite of nftables alone")
			}
			facts, id, err := ReadFacts(h)
			if err != nil {
				t.Fatal(err)
			}
			spec.Name = "other"
			spec.Subnet = specs()["vlan"].Subnet
			plan, err := NewPlan(spec, nil, id, facts)
			if err != nil {
				t.Fatal(err)
			}
			if len(plan.Warnings) != 1 || !strings.HasPrefix(plan.Warnings[0], kind+" filters, too") {
				t.Errorf("warnings %q", plan.Warnings)
			}
			closeAndCalm(t, p, accepts, calm)
		})
	}
}

func closeAndCalm(t *testing.T, p *Port, accepts func() bool, calm string) {
	t.Helper()
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if accepts() {
		t.Error("accepts are left behind")
	}
	shell(t, calm)
}

// TestStrangersAreTold: an accept of ours does not outdo a drop in a table of
// somebody else; whoever plans is told.
func TestStrangersAreTold(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	shell(t, `nft -f - <<X
table inet firewalld {
	chain filter_FORWARD {
		type filter hook forward priority 10;
		ct state established,related accept
		counter reject with icmpx admin-prohibited
	}
	chain filter_INPUT {
		type filter hook input priority 10; policy drop;
		iifname "lo" accept
	}
	chain filter_OUTPUT {
		type filter hook output priority 10; policy drop;
	}
	chain harmless {
		type filter hook forward priority 20;
		ip saddr 192.0.2.1 drop
	}
}
X`)
	facts, id, err := ReadFacts(testHost(t))
	if err != nil {
		t.Fatal(err)
	}
	plan, err := NewPlan(specs()["nat"], nil, id, facts)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"inet firewalld, chain filter_FORWARD drops what it does not know: let the network's bridge pass there",
		"inet firewalld, chain filter_INPUT drops what it does not know: let the network's bridge pass there",
	}
	if diff := cmp.Diff(want, plan.Warnings); diff != "" {
		t.Error(diff)
	}
}

// TestRuleCount: neither VMs nor ways out add rules to nftables.
func TestRuleCount(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	uplinks(t)
	h := testHost(t)
	h.Firewall = "nftables"
	count := func() int { return strings.Count(shell(t, "nft -a list ruleset"), "# handle") }
	first, err := Attach(context.Background(), h, specs()["nat"], portOf(0))
	if err != nil {
		t.Fatal(err)
	}
	before := count()
	for i := range 8 {
		p, err := Attach(context.Background(), h, specs()["nat"], portOf(i+1))
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
	}
	ip(t, "addr", "add", "198.51.100.2/24", "dev", "eth2") // a second way out
	if !within(10*time.Second, func() bool { return strings.Contains(shell(t, "nft list ruleset"), `"eth2"`) }) {
		t.Error("the new way out is not kept from transit")
	}
	if after := count(); after != before {
		t.Errorf("%d tables, chains, sets and rules became %d", before, after)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
}

// TestLegacyPrint changes with rules, not with traffic, and does not make tables.
func TestLegacyPrint(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	print := func() string {
		t.Helper()
		p, err := firewall.LegacyPrint()
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	if print() != "" {
		t.Error("a print of tables that nobody uses")
	}
	if names, _ := os.ReadFile("/proc/net/ip_tables_names"); len(names) > 0 {
		t.Errorf("looking made tables: %q", names)
	}
	shell(t, "iptables-legacy -A INPUT -j ACCEPT")
	before := print()
	if err := exec.Command("busybox", "ping", "-c", "2", "-i", "0.1", "127.0.0.1").Run(); err != nil {
		t.Fatal(err)
	}
	if print() != before {
		t.Error("traffic changes the print")
	}
	for _, change := range []string{"-P FORWARD DROP", "-A FORWARD -j ACCEPT", "-R FORWARD 1 -j DROP", "-t nat -A POSTROUTING -j ACCEPT", "-F"} {
		shell(t, "iptables-legacy "+change)
		now := print()
		if now == before {
			t.Errorf("iptables %s does not change the print", change)
		}
		before = now
	}
}
