package netsetup

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	mdns "github.com/miekg/dns"
)

// only is the one keeper that there has to be.
func only(t *testing.T) int {
	t.Helper()
	pids := keepers(t)
	if len(pids) != 1 {
		t.Fatalf("keepers %v, want one", pids)
	}
	return pids[0]
}

// lan inspects the network that the tests hold.
func lan(t *testing.T, h Host) Report {
	t.Helper()
	r, err := Inspect(context.Background(), h, "lan", specs()["nat"].Dir)
	if err != nil {
		t.Fatalf("%v\n%s", err, keeperLogs(h))
	}
	return r
}

// awaitAlone waits until no process of the test's is left but itself.
func awaitAlone(t *testing.T) {
	t.Helper()
	for pids := others(t); len(pids) > 0; pids = others(t) {
		awaitEnd(t, pids[0], 0)
	}
}

// TestHolderFirewall: a network that is held has its rules carried by what who asked
// for it wished.
func TestHolderFirewall(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	uplinks(t)
	ctx, spec := context.Background(), specs()["nat"]
	withEach(t, func(t *testing.T, h Host) {
		if err := StartHolder(ctx, h, spec, nil); err != nil {
			t.Fatal(err)
		}
		if r, err := Inspect(ctx, h, spec.Name, spec.Dir); err != nil || r.Firewall != h.Firewall {
			t.Errorf("%s carries the rules, %v; want %s", r.Firewall, err, h.Firewall)
		}
		if err := Down(ctx, h, spec.Name, spec.Dir); err != nil {
			t.Error(err)
		}
	})
}

// TestHold holds a network without a VM, through the death of its keeper, until
// it is taken down.
func TestHold(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	uplinks(t)
	gateway(t)
	h := testHost(t)
	hostState(t)
	before := hostState(t)
	ctx := context.Background()
	for name, spec := range specs() {
		if spec.Mode == VLAN {
			continue // package integration has a kernel for it
		}
		t.Run(name, func(t *testing.T) {
			if err := StartHolder(ctx, h, spec, nil); err != nil {
				t.Fatalf("%v\n%s", err, keeperLogs(h))
			}
			r, err := Inspect(ctx, h, spec.Name, spec.Dir)
			if err != nil || r.State != Up || len(r.Holders) != 1 || len(r.Members) != 0 {
				t.Errorf("report %+v, %v; want one holder and no member", r, err)
			}
			kill(t, only(t))
			p, err := Attach(ctx, h, spec, testPort()) // by the next keeper, whoever started it
			if err != nil {
				t.Fatalf("%v\n%s", err, keeperLogs(h))
			}
			if err := p.Close(); err != nil {
				t.Error(err)
			}
			if err := Down(ctx, h, spec.Name, spec.Dir); err != nil {
				t.Errorf("%v\n%s", err, keeperLogs(h))
			}
			awaitAlone(t)
			leftNothing(t, h, before, hostState)
		})
	}
}

// TestHoldAdopted: a keeper that is killed under a holder and a member is
// replaced within a second, with the same lease, and held since the same time.
func TestHoldAdopted(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	h, before := uplinkedHost(t)
	ctx := context.Background()
	if err := StartHolder(ctx, h, specs()["nat"], nil); err != nil {
		t.Fatal(err)
	}
	m := startMember(t, h, "nat")
	first := lan(t, h)
	for range 3 {
		kill(t, only(t))
		r := awaitReport(t, h, func(r Report) bool {
			return len(r.Holders) > 0 && len(r.Members) > 0 && r.Members[0].PID != 0
		})
		if diff := cmp.Diff(leases(first), leases(r)); diff != "" {
			t.Errorf("leases (-before +after):\n%s", diff)
		}
		if !first.Since.Equal(r.Since) || !first.Holders[0].Since.Equal(r.Holders[0].Since) {
			t.Errorf("up since %v, held since %v; before %v and %v", r.Since, r.Holders[0].Since, first.Since, first.Holders[0].Since)
		}
	}
	m.Process.Kill()
	m.Wait()
	if err := Down(ctx, h, "lan", specs()["nat"].Dir); err != nil {
		t.Errorf("%v\n%s", err, keeperLogs(h))
	}
	awaitAlone(t)
	if diff := cmp.Diff(before, hostState(t)); diff != "" {
		t.Errorf("left behind:\n%s", diff)
	}
}

// leases is what of a report's leases has to outlive a keeper.
func leases(r Report) []string {
	var all []string
	for _, l := range r.Leases {
		all = append(all, l.IP.String()+" "+l.MAC+" "+l.Hostname)
	}
	return all
}

// TestUpAndDownTwice: who comes second is told so, or what is different.
func TestUpAndDownTwice(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	h, before := uplinkedHost(t)
	ctx, spec := context.Background(), specs()["nat"]
	if err := StartHolder(ctx, h, spec, nil); err != nil {
		t.Fatal(err)
	}
	if err := StartHolder(ctx, h, spec, nil); !errors.Is(err, ErrHeld) {
		t.Errorf("second hold: %v, want ErrHeld", err)
	}
	other := spec
	other.MTU = 9000
	want := "hold network lan: network: lan is running with another definition: mtu (unset there, 9000 here)"
	if err := StartHolder(ctx, h, other, nil); err == nil || err.Error() != want {
		t.Errorf("another definition: %v, want %s", err, want)
	}
	want = "hold network lan: group: lan is up and open to root alone; take it down first to open it to group lab"
	if err := StartHolder(ctx, h, spec, &Group{7000, "lab"}); err == nil || err.Error() != want {
		t.Errorf("another group: %v, want %s", err, want)
	}
	p, err := Attach(ctx, h, spec, testPort())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		var busy *BusyError
		if err := Down(ctx, h, "lan", spec.Dir); !errors.As(err, &busy) || !slices.Equal(busy.VMs, []string{"web"}) {
			t.Errorf("down with a VM: %v", err)
		}
	}
	if r := lan(t, h); r.State != GoingDown {
		t.Errorf("state %q, want going down", r.State)
	}
	kill(t, only(t)) // the next one learns from the holder that it goes
	lan(t, h)
	if err := StartHolder(ctx, h, spec, nil); err != nil {
		t.Errorf("up while it goes down: %v", err)
	}
	if r := lan(t, h); r.State != Up || len(r.Holders) != 1 {
		t.Errorf("state %q, holders %v", r.State, r.Holders)
	}
	if err := Down(ctx, h, "lan", spec.Dir); err == nil {
		t.Error("down with a VM succeeded")
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	for range 3 {
		var gone *NotFoundError
		if err := Down(ctx, h, "lan", spec.Dir); !errors.As(err, &gone) || !gone.Was {
			t.Errorf("down once more: %v", err)
		}
	}
	awaitAlone(t)
	leftNothing(t, h, before, hostState)
}

// TestInspectCutShort: whoever is told to end in the middle says so, not what
// became of the connection.
func TestInspectCutShort(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	uplinks(t)
	h, spec := testHost(t), specs()["nat"]
	if err := StartHolder(context.Background(), h, spec, nil); err != nil {
		t.Fatal(err)
	}
	told := errors.New("told to end")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(told)
	if _, err := Inspect(ctx, h, "lan", spec.Dir); !errors.Is(err, told) {
		t.Errorf("inspect: %v", err)
	}
	if err := Down(context.Background(), h, "lan", spec.Dir); err != nil {
		t.Error(err)
	}
}

// TestHolderKilled: a network without a VM goes with its holder.
func TestHolderKilled(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	h, before := uplinkedHost(t)
	ctx, spec := context.Background(), specs()["nat"]
	for _, order := range []string{"holder", "keeper holder", "holder keeper"} {
		if err := StartHolder(ctx, h, spec, nil); err != nil {
			t.Fatal(err)
		}
		r := lan(t, h)
		for who := range strings.FieldsSeq(order) {
			if who == "holder" {
				kill(t, r.Holders[0].PID)
			} else {
				kill(t, r.KeeperID)
			}
		}
		awaitAlone(t)
		if _, err := Sweep(ctx, h); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(before, hostState(t)); diff != "" {
			t.Errorf("%s: left behind:\n%s\n%s", order, diff, keeperLogs(h))
		}
	}
}

// TestSharing: VMs of different profiles are on one network, know each other's
// names, and the last one takes it down.
func TestSharing(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	h, before := uplinkedHost(t)
	ctx := context.Background()
	var ports []*Port
	for i := range 3 {
		p, err := Attach(ctx, h, specs()["host-only"], portOf(i))
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, p)
	}
	only(t)
	r, err := Inspect(ctx, h, "host-only", "")
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Members) != 3 || r.Members[1].VM != "vm1" || r.Members[1].PID != os.Getpid() || r.Members[1].Link != ports[1].Link() {
		t.Errorf("members %+v", r.Members)
	}
	for i, p := range ports {
		if got := resolves(t, h, r, portOf(i).VM); got != p.IP().String() {
			t.Errorf("%s resolves to %q, want %s", portOf(i).VM, got, p.IP())
		}
	}
	for _, p := range ports {
		if hostState(t) == before {
			t.Error("the network went with members on it")
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	if diff := cmp.Diff(before, hostState(t)); diff != "" {
		t.Errorf("left behind:\n%s", diff)
	}
}

// resolves asks the network's DNS for a VM.
func resolves(t *testing.T, h Host, r Report, vm string) string {
	t.Helper()
	saved, err := loadSpec(filepath.Join(netsFolder(h.Runtime), r.ID, specName))
	if err != nil {
		t.Fatal(err)
	}
	question := new(mdns.Msg).SetQuestion(vm+"."+domain+".", mdns.TypeA)
	client := &mdns.Client{Timeout: patience}
	answer, _, err := client.Exchange(question, netip.AddrPortFrom(r.Address.Addr(), uint16(saved.Network.DNSPort)).String())
	if err != nil {
		t.Fatal(err)
	}
	for _, rr := range answer.Answer {
		if a, ok := rr.(*mdns.A); ok {
			return a.A.String()
		}
	}
	return ""
}
