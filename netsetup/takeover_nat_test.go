package netsetup

import (
	"context"
	"strings"
	"testing"

	"github.com/vmrun/vmrun/netsetup/firewall"
)

// TestTakeoverUnderNAT: a nat network whose way out is taken over goes on over the
// bridge, and over the uplink again; the host routes for nobody else meanwhile.
func TestTakeoverUnderNAT(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	usedUplink(t)
	h := testHost(t)
	network(t)
	before := network(t)
	other := specs()["nat"]
	other.Name = "other"
	nat, err := Attach(context.Background(), h, other, testPort())
	if err != nil {
		t.Fatalf("%v\n%s", err, keeperLogs(h))
	}
	p, err := Attach(context.Background(), h, takeoverSpec(), portOf(1))
	if err != nil {
		t.Fatalf("%v\n%s", err, keeperLogs(h))
	}
	awaitForwarding(t, p.Bridge())
	rules := shell(t, "nft list table ip "+firewall.Table(newNamesOf(t, h, other).id))
	_, set, _ := strings.Cut(rules, "set transit {")
	if set, _, _ = strings.Cut(set, "set hairpin {"); !strings.Contains(set, `"`+p.Bridge()+`"`) {
		t.Errorf("nothing keeps the host from routing for the bridge's neighbours:\n%s", rules)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	awaitForwarding(t, "eth0")
	if err := nat.Close(); err != nil {
		t.Error(err)
	}
	leftNothing(t, h, before, network)
}

// awaitForwarding waits until a link forwards.
func awaitForwarding(t *testing.T, link string) {
	t.Helper()
	if !within(patience, func() bool { return strings.Contains(forwarding(t), "/"+link+"/forwarding:1") }) {
		t.Fatalf("%s does not forward:\n%s", link, forwarding(t))
	}
}
