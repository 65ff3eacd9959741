package netsetup

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestLeaseFileLost: where the lease file can't be written a network does not begin,
// but one that is up outlives its keeper, with the addresses that it has given.
func TestLeaseFileLost(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	h, before := uplinkedHost(t)
	ctx, spec := context.Background(), specs()["nat"]
	a, err := Attach(ctx, h, spec, portOf(1))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(h.State, "leases", spec.folder()+".json")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(file, 0o700); err != nil {
		t.Fatal(err)
	}
	kill(t, only(t))
	b, err := Attach(ctx, h, spec, portOf(2))
	if err != nil {
		t.Fatalf("%v\n%s", err, keeperLogs(h))
	}
	if n := strings.Count(keeperLogs(h), "leases are kept in memory alone"); n != 1 {
		t.Errorf("told %d times:\n%s", n, keeperLogs(h))
	}
	r := lan(t, h)
	if len(r.Leases) != 2 || len(r.Members) != 2 || r.Members[0].IP != a.IP() || a.IP() == b.IP() {
		t.Errorf("report %+v; given were %s and %s", r, a.IP(), b.IP())
	}
	for _, p := range []*Port{a, b} {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	awaitAlone(t)
	if _, err := Attach(ctx, h, spec, portOf(1)); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("the network began: %v", err)
	}
	awaitAlone(t)
	leftNothing(t, h, before, hostState)
}

// TestAdoptedAddresses: what its guest has is a port's, without asking the wire of a
// tenant's network, which here can't even be asked.
func TestAdoptedAddresses(t *testing.T) {
	k, _ := fakeKeeper(t)
	first := netip.MustParseAddr("10.80.0.100")
	k.network = Resolved{Spec: specs()["vlan"], Subnet: specs()["vlan"].Subnet, PoolFirst: first,
		PoolLast: netip.MustParseAddr("10.80.0.199"), Link: "gone"}
	k.ports["a"] = &holding{portRecord: portRecord{ID: "a", Spec: testPort(), IP: first}}
	s, err := openServices(k, k.network)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if _, err := s.reserve(portOf(1), false); err == nil {
		t.Error("a new port's address was not asked for on the wire")
	}
	s.reserveAgain(k)
	if got := s.leases.Lookup(testPort().VM); !slices.Equal(got, []netip.Addr{first}) {
		t.Errorf("reserved %v, want %s", got, first)
	}
}
