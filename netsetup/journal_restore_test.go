package netsetup

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// journalDamages are what may become of a journal while its keeper lives; nil: it is
// removed.
var journalDamages = map[string]func(text string) string{
	"removed": nil,
	"empty":   func(string) string { return "" },
	"noise":   func(string) string { return strings.Repeat("\x00\xff\n{]", 5000) },
	"foreign": func(string) string { return `{"hello": "world"}` + "\n" },
	"middle": func(text string) string { // the first line is the bridge's
		lines := strings.SplitAfter(strings.TrimLeft(text, "\n"), "\n")
		lines[1] = "\x00\xff garbage\n"
		return strings.Join(lines, "")
	},
	"bridge": func(text string) string {
		lines := strings.SplitAfter(strings.TrimLeft(text, "\n"), "\n")
		lines[0] = strings.Repeat("x", len(lines[0])-1) + "\n"
		return strings.Join(lines, "")
	},
}

// TestDamagedJournal: whatever has become of the journal of a network whose
// processes were killed, the host is as it was, by whichever way it is undone, and
// what a stranger has called similarly stays.
func TestDamagedJournal(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	uplinks(t)
	withEach(t, func(t *testing.T, h Host) {
		for name, damage := range journalDamages {
			t.Run(name, func(t *testing.T) { undoesDamaged(t, h, damage) })
		}
	})
}

// undoings are the ways by which what a dead keeper left is undone.
var undoings = map[string]func(context.Context, Host, Spec) error{
	"sweep": func(ctx context.Context, h Host, _ Spec) error { _, err := Sweep(ctx, h); return err },
	"down":  func(ctx context.Context, h Host, s Spec) error { return Down(ctx, h, s.Name, s.Dir) },
	"use": func(ctx context.Context, h Host, s Spec) error {
		p, err := Attach(ctx, h, s, testPort())
		if err != nil {
			return err
		}
		return p.Close()
	},
}

func undoesDamaged(t *testing.T, h Host, damage func(string) string) {
	t.Helper()
	ctx, spec := context.Background(), specs()["nat"]
	for way, undo := range undoings {
		hostState(t)
		before := hostState(t)
		m := startMember(t, h, "nat")
		r := lan(t, h)
		strangers := []string{r.Bridge[:len(r.Bridge)-1] + "9", "vmrun0"}
		for _, link := range strangers {
			ip(t, "link", "add", link, "type", "bridge")
		}
		sh(t, "nft add table ip vmrun_stranger")
		damageJournal(t, h, spec, damage)
		halt(t, m.Process.Pid) // nobody starts another keeper
		kill(t, r.KeeperID)
		if err := unix.Kill(m.Process.Pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		m.Wait()
		if err := undo(ctx, h, spec); err != nil {
			t.Errorf("%s: %v", way, err)
		}
		awaitAlone(t)
		for _, link := range strangers {
			ip(t, "link", "del", link)
		}
		sh(t, "nft delete table ip vmrun_stranger")
		leftNothing(t, h, before, hostState)
	}
}

func damageJournal(t *testing.T, h Host, spec Spec, damage func(string) string) {
	t.Helper()
	path := filepath.Join(netsFolder(h.Runtime), spec.folder(), "journal")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if damage == nil {
		err = os.Remove(path)
	} else {
		err = os.WriteFile(path, []byte(damage(string(text))), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestDamagedJournalOfALivingVM: a network is not undone under a VM whose port
// nobody can read any more, nor where nothing tells its names.
func TestDamagedJournalOfALivingVM(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	uplinks(t)
	h, spec := testHost(t), specs()["nat"]
	m := startMember(t, h, "nat")
	damageJournal(t, h, spec, journalDamages["noise"])
	halt(t, m.Process.Pid)
	r := lan(t, h)
	kill(t, r.KeeperID)
	inUse := hostState(t)
	if lines, err := Sweep(t.Context(), h); lines != nil || err != nil {
		t.Errorf("swept %q, %v", lines, err)
	}
	if diff := cmp.Diff(inUse, hostState(t)); diff != "" {
		t.Errorf("undone under a VM:\n%s", diff)
	}
	if err := unix.Kill(m.Process.Pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	m.Wait()
	dir := filepath.Join(netsFolder(h.Runtime), spec.folder())
	if err := os.WriteFile(filepath.Join(dir, specName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := Sweep(t.Context(), h); err == nil || !strings.Contains(err.Error(), filepath.Join(dir, "journal")) {
			t.Errorf("swept without names: %v", err)
		}
	}
	ip(t, "link", "show", r.Bridge)
}

// TestMembersOutliveTheJournal: whatever has become of the journal of a network
// whose keeper is killed, its VMs keep their ports and addresses, and with the last
// of them all is as it was.
func TestMembersOutliveTheJournal(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	uplinks(t)
	spec := specs()["nat"]
	withEach(t, func(t *testing.T, h Host) {
		for name, damage := range journalDamages {
			for _, deaths := range []int{1, 2} {
				t.Run(fmt.Sprint(name, deaths), func(t *testing.T) {
					hostState(t)
					before := hostState(t)
					m := startMember(t, h, "nat")
					was := lan(t, h)
					damageJournal(t, h, spec, damage)
					for range deaths {
						kill(t, only(t))
						r := awaitReport(t, h, func(r Report) bool { return r.State == was.State && r.Members[0].VM == was.Members[0].VM })
						if diff := cmp.Diff(addressesOf(was), addressesOf(r)); diff != "" {
							t.Errorf("the member's port changed:\n%s", diff)
						}
					}
					m.Process.Kill()
					m.Wait()
					awaitAlone(t)
					leftNothing(t, h, before, hostState)
				})
			}
		}
	})
}

// addressesOf are what the members of a network are known by.
func addressesOf(r Report) []string {
	var all []string
	for _, m := range r.Members {
		all = append(all, fmt.Sprint(m.VM, m.NIC, m.MAC, m.IP, m.Link, m.UID))
	}
	return all
}

// TestDamagedJournalOfATakeover: a bridge that has the host's addresses stays where
// nothing tells any more how to give them back.
func TestDamagedJournalOfATakeover(t *testing.T) {
	in, err := instance(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	h := Host{Runtime: strings.Split(in, "\x00")[0]}
	spec := specs()["bridge-takeover"]
	bridge := newNames(in, spec).bridge
	k, world := fakeKeeper(t)
	k.network = Resolved{Spec: spec, Link: bridge}
	if err := k.saveSpec(); err != nil {
		t.Fatal(err)
	}
	k.journal.damaged = true
	if err := k.journal.restore(h, k.w); err != nil {
		t.Errorf("without a bridge: %v", err)
	}
	world.add(Link{Name: bridge, Kind: "bridge"})
	k.journal.damaged = true
	if err := k.journal.restore(h, k.w); err == nil || !strings.Contains(err.Error(), bridge) {
		t.Errorf("with it: %v", err)
	}
	if err := k.journal.record(giveBack{Uplink: "eth1", Bridge: bridge}); err != nil {
		t.Fatal(err)
	}
	if err := k.journal.restore(h, k.w); err != nil || len(k.journal.entries) != 1 {
		t.Errorf("noted what to give back: %v", err)
	}
	k.journal.damaged = true
	if err := k.journal.restore(Host{Runtime: "/elsewhere"}, k.w); err == nil {
		t.Error("a network of another instance was taken for ours")
	}
}

// TestLeftoverIsNamed: what has no journal is told with its rules.
func TestLeftoverIsNamed(t *testing.T) {
	spec := specs()["nat"]
	n := newNames("test", spec)
	for backend, want := range map[string]string{
		"nftables": "ip link del " + n.bridge + " and nft delete table ip vmrun_" + n.id,
		"iptables": "ip link del " + n.bridge + " and deleting the chains VMR-" + n.id + "-* of iptables",
	} {
		f := testFacts()
		f.Firewall = backends[backend]
		f.Links = append(f.Links, Link{Name: n.bridge, Kind: "bridge"})
		if _, _, err := planNetwork(spec, n, f); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want one with %q", backend, err, want)
		}
	}
}
