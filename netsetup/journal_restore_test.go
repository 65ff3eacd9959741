package netsetup

import (
	"bytes"
	"context"
	"errors"
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
	"newline": func(string) string { return "\n" },
	"crossed": func(string) string { return `{"v":1,"seq":7,"done":3}` + "\n" }, // emptied, and then a member left
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
	damageJournal(t, h, spec, journalDamages["noise"])
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
// whose keeper is killed, its VMs keep their ports and addresses, the host its rules,
// and with the last of them all is as it was.
func TestMembersOutliveTheJournal(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	uplinks(t)
	withEach(t, func(t *testing.T, h Host) {
		for name, damage := range journalDamages {
			t.Run(name, func(t *testing.T) { outlivesJournal(t, h, damage) })
		}
		route(t) // the host is a router, whose own ways stay open
		t.Run("router", func(t *testing.T) { outlivesJournal(t, h, journalDamages["empty"]) })
		sh(t, "echo 0 >/proc/sys/net/ipv4/ip_forward")
	})
}

func outlivesJournal(t *testing.T, h Host, damage func(string) string) {
	hostState(t)
	before := hostState(t)
	m := startMember(t, h, "nat")
	was, inUse := lan(t, h), withoutKeeper(t)
	for range 2 {
		damageJournal(t, h, specs()["nat"], damage)
		kill(t, only(t))
		r := awaitReport(t, h, func(r Report) bool {
			return r.State == was.State && len(r.Members) == 1 && r.Members[0].VM == was.Members[0].VM
		})
		if diff := cmp.Diff(addressesOf(was), addressesOf(r)); diff != "" {
			t.Errorf("the member's port changed:\n%s", diff)
		}
		if !within(patience, func() bool { return withoutKeeper(t) == inUse }) {
			t.Errorf("the host changed:\n%s", cmp.Diff(inUse, withoutKeeper(t)))
		}
	}
	m.Process.Kill()
	m.Wait()
	awaitAlone(t)
	leftNothing(t, h, before, hostState)
}

// withoutKeeper is hostState, whatever the keeper's process.
func withoutKeeper(t *testing.T) string {
	t.Helper()
	state, _, _ := strings.Cut(hostState(t), "keepers ")
	return state
}

// TestLostPortOfAGuest: a port of which the journal has lost whose it is goes, unless
// root's member wants it, and nobody without root comes in before that.
func TestLostPortOfAGuest(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	h := openedLAN(t, labGroup)
	first, second := newPuppet(t, 1000, 7000), newPuppet(t, 1001, 7000)
	a := first.must(guestPort(1))
	damageJournal(t, h, specs()["nat"], journalDamages["noise"])
	kill(t, only(t))
	r := awaitReport(t, h, func(r Report) bool { return r.State == Up && len(r.Members) == 1 })
	if m := r.Members[0]; m.Link != a.Link || m.VM != a.Link || m.MAC != (MAC{}) {
		t.Errorf("lost is %+v, want no more than the TAP %s", m, a.Link)
	}
	if out := second.does(guestPort(2)); !strings.Contains(out.Err, "try again") {
		t.Errorf("another one came in: %+v", out)
	}
	if !within(firstMemberTimeout+patience, func() bool { return len(lan(t, h).Members) == 0 }) {
		t.Errorf("the lost port stays: %+v", lan(t, h).Members)
	}
	second.must(guestPort(2))
	second.kill()
	awaitReport(t, h, func(r Report) bool { return len(r.Members) == 0 })
}

// TestNothingIsRegained: a keeper that has adopted nothing knows of no port.
func TestNothingIsRegained(t *testing.T) {
	k, _ := fakeKeeper(t)
	k.names = names{}
	answer := k.resumePort(nil, peer{}, attachRequest{ID: "a", Net: specs()["nat"], Port: testPort(), Resume: true})
	if answer.Detached == nil || !answer.Detached.Last {
		t.Errorf("answered %+v", answer)
	}
}

// TestJournalIsRewrittenAsAWhole: a journal that can't be made up for stays as it is.
func TestJournalIsRewrittenAsAWhole(t *testing.T) {
	r := newRig(t, "nftables")
	if err := r.j.record(delLinks{Group: 1, Names: []string{"vmrx"}}); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(r.j.path)
	if err != nil {
		t.Fatal(err)
	}
	r.j.damaged = true
	for _, failure := range []error{errInjected, nil} {
		err := r.j.rewrite(func() error { return errors.Join(failure, r.j.record(delTables{"x"})) })
		after, readErr := os.ReadFile(r.j.path)
		if readErr != nil || exists(r.j.path+".new") {
			t.Fatalf("%v, %v", err, readErr)
		}
		undone := failure != nil
		if (err != nil) != undone || r.j.damaged != undone || bytes.Equal(before, after) != undone || r.j.entries[0].Seq != 1 {
			t.Errorf("%v: damaged %v, journal %s", err, r.j.damaged, after)
		}
	}
	if err := r.j.record(delTables{"y"}); err != nil || len(r.j.entries) != 2 {
		t.Errorf("%d entries, %v", len(r.j.entries), err)
	}
	r.j.file.Close()
	r.open()
	if len(r.j.entries) != 2 || r.j.damaged {
		t.Errorf("read %d entries, damaged %v", len(r.j.entries), r.j.damaged)
	}
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
	if err := k.journal.restore(h, k.w); err != nil {
		t.Errorf("noted what to give back: %v", err)
	}
	newest, err := k.journal.entries[len(k.journal.entries)-1].Undo.decode()
	if _, ok := newest.(giveBack); !ok || len(k.journal.entries) < 2 {
		t.Errorf("%d entries, the last %v, %v; want the bridge and, undone before it, what to give back", len(k.journal.entries), newest, err)
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
