package netsetup

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmrun/vmrun/netsetup/firewall"
)

// TestRulesAreWhatThePlanSays: what is added by netlink is what nft makes of the
// plan's text, for each mode.
func TestRulesAreWhatThePlanSays(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	owner := regexp.MustCompile(`(?m)( \{ flags owner; \}$|^\tflags owner\n\n| # progname .*$)`)
	list := func() string { return owner.ReplaceAllString(shell(t, "nft list ruleset"), "") }
	for name, spec := range specs() {
		n := newNames("test", spec)
		facts := testFacts()
		facts.Firewall = backends["nftables"]
		r, _, err := planNetwork(spec, n, facts)
		if err != nil || r.Backend == "" {
			continue // a bridge that is joined has no rules
		}
		h := firewall.NewHost(nil)
		rules := []firewall.Rules{firewall.NewRules(rulesOf(r, n), firewall.NFTables)}
		if r.Mode == NAT {
			rules = append(rules, transitRules(r, n, facts, "eth1"))
		}
		var text []string
		for _, rs := range rules {
			if err := h.Add(rs); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			text = append(text, rs.Lines()...)
		}
		ours := list()
		if err := h.DelTables(n.id); err != nil {
			t.Fatal(err)
		}
		if left := list(); left != "" {
			t.Errorf("%s: left behind:\n%s", name, left)
		}
		nft := exec.Command("nft", "-f", "-")
		nft.Stdin = strings.NewReader(owner.ReplaceAllString(strings.Join(text, "\n"), "") + "\n")
		if out, err := nft.CombinedOutput(); err != nil {
			t.Fatalf("%s: nft: %v\n%s", name, err, out)
		}
		if diff := cmp.Diff(sortedTables(list()), sortedTables(ours)); diff != "" {
			t.Errorf("%s (-nft's reading of the plan +ours):\n%s", name, diff)
		}
		shell(t, "nft flush ruleset")
		h.Close()
	}
}

// sortedTables are the tables of a listing in the order of their names.
func sortedTables(listing string) []string {
	all := strings.SplitAfter(listing, "\n}\n")
	slices.Sort(all)
	return all
}

// TestDockerChain: rules go where Docker lets others decide, if packets come
// through there, and are removed by hand-work where others took a part away.
func TestDockerChain(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	h, err := newHost(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	iptables := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("iptables", args...).CombinedOutput(); err != nil {
			t.Fatalf("iptables %v: %v: %s", args, err, out)
		}
	}
	docker := func(want bool) {
		t.Helper()
		f, err := h.Firewall("")
		if err != nil {
			t.Fatal(err)
		}
		if f.Docker != want {
			t.Errorf("Docker's chain counts in iptables: %v, want %v", f.Docker, want)
		}
		if got := slices.ContainsFunc(f.Filters, func(x firewall.Filter) bool { return x.Docker }); got != want {
			t.Errorf("Docker's chain counts beside nftables: %v, want %v: %+v", got, want, f.Filters)
		}
	}
	docker(false)
	iptables("-N", "DOCKER-USER")
	docker(false) // nothing leads there
	iptables("-I", "FORWARD", "-j", "DOCKER-USER")
	docker(true)

	before := hostState(t)
	rules := firewall.NewRules(firewall.Network{ID: "x", Bridge: "vmrx", Others: "vmr"}, firewall.IPTables)
	rules.Docker = true
	if err := h.AddRules(rules); err != nil {
		t.Fatal(err)
	}
	chains := rules.Jumped()
	iptables("-D", "DOCKER-USER", "-i", "vmrx", "-j", chains[0].Name) // somebody was faster
	for range 2 {                                                     // the second time there is nothing left
		if err := h.DelChains(firewall.IPTables, chains); err != nil {
			t.Error(err)
		}
	}
	if after := hostState(t); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
}

// TestFilters: what others filter is found out alike with both kinds of
// iptables, of which one is read without a process.
func TestFilters(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	h, err := newHost(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	const docker = ":DOCKER-USER - [0:0]\n-A DOCKER-USER -j RETURN\n"
	for _, tt := range []struct {
		name, rules string
		want        firewall.Filter
	}{
		{"idle", ":INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT DROP [0:0]\n", firewall.Filter{}},
		{"policy", ":INPUT DROP [0:0]\n:FORWARD ACCEPT [0:0]\n", firewall.Filter{Blocks: true}},
		{"rule", ":INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n-A FORWARD -i eth9 -p tcp -m tcp --dport 22 -j REJECT --reject-with icmp-host-prohibited\n", firewall.Filter{Blocks: true}},
		{"docker", ":INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n" + docker + "-A FORWARD -j DOCKER-USER\n", firewall.Filter{Blocks: true, Docker: true}},
		{"no way to docker", ":INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n" + docker, firewall.Filter{}},
		{"docker elsewhere", ":FORWARD ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n" + docker + "-A INPUT -j DOCKER-USER\n", firewall.Filter{Blocks: true}},
		{"ours alone", ":INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:VMR-x-FWD - [0:0]\n-A FORWARD -i vmrx -j VMR-x-FWD\n-A VMR-x-FWD -j ACCEPT\n", firewall.Filter{}},
	} {
		var want []firewall.Filter
		for _, b := range []firewall.Backend{firewall.IPTablesNFT, firewall.IPTablesLegacy} {
			restore := exec.Command(string(b) + "-restore")
			restore.Stdin = strings.NewReader("*filter\n" + tt.rules + "COMMIT\n")
			if out, err := restore.CombinedOutput(); err != nil {
				t.Fatalf("%s: %s: %v: %s", tt.name, restore.Path, err, out)
			}
			tt.want.Backend = b
			want = append(want, tt.want)
		}
		if got, err := h.Filters(); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %+v, %v; want %+v", tt.name, got, err, want)
		}
	}
}

// TestOwnersTableInTheWay: a table that has the name of the keeper's but no owner, and
// that drops all, stops neither a network that comes up nor one that is adopted.
func TestOwnersTableInTheWay(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	h, before := uplinkedHost(t)
	h.Firewall = "nftables"
	spec := specs()["nat"]
	id, err := instance(h.Runtime)
	if err != nil {
		t.Fatal(err)
	}
	table := firewall.Table(newNames(id, spec).id) + "_keeper"
	inTheWay := fmt.Sprintf("nft 'table ip %s { chain c { type filter hook forward priority 0; policy drop; }; }'", table)
	sh(t, inTheWay)
	p, err := Attach(context.Background(), h, spec, testPort())
	if err != nil {
		t.Fatalf("%v\n%s", err, keeperLogs(h))
	}
	defer p.Close()
	without(t, h, spec, func() { sh(t, inTheWay) })
	if !within(patience, func() bool { return lan(t, h).State == Up }) {
		t.Errorf("not adopted:\n%s", keeperLogs(h))
	}
	rules, err := exec.Command("nft", "list", "table", "ip", table).CombinedOutput()
	if err != nil || !strings.Contains(string(rules), "flags owner") || strings.Contains(string(rules), "policy drop") {
		t.Errorf("%v; rules:\n%s\n%s", err, rules, keeperLogs(h))
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	leftNothing(t, h, before, hostState)
}
