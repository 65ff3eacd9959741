package netsetup

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/netsetup/firewall"
)

// byHand are what an administrator may have taken away in the meantime.
var byHand = map[string]func(t *testing.T, dir string, r Report){
	"bridge":  func(t *testing.T, _ string, r Report) { ip(t, "link", "del", r.Bridge) },
	"TAP":     func(t *testing.T, _ string, r Report) { ip(t, "link", "del", r.Members[0].Link) },
	"rules":   removeRules,
	"journal": func(t *testing.T, dir string, _ Report) { remove(t, dir, "journal") },
	"spec":    func(t *testing.T, dir string, _ Report) { remove(t, dir, specName) },
	"socket":  func(t *testing.T, dir string, _ Report) { remove(t, dir, socketName) },
	"forwarding": func(t *testing.T, _ string, _ Report) {
		sh(t, "cd /proc/sys/net/ipv4/conf/eth1 && grep -q 1 forwarding && echo 0 > forwarding")
	},
}

// removeRules takes the network's rules away, which have to be there.
func removeRules(t *testing.T, _ string, r Report) {
	t.Helper()
	if r.Firewall == string(firewall.NFTables) {
		sh(t, "nft delete table ip "+firewall.Table(strings.TrimPrefix(r.Bridge, bridgePrefix)))
		return
	}
	for _, table := range []string{"filter", "nat"} {
		iptables := "iptables -t " + table
		sh(t, iptables+" -S | grep -q VMR- && "+iptables+" -F && { "+iptables+" -X || true; }") // the keeper may just bring them back
	}
}

func remove(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

// TestDownAfterHands: a network goes down without complaint, and leaves nothing,
// whatever of it somebody has removed.
func TestDownAfterHands(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	uplinks(t)
	withEach(t, downAfterHands)
}

func downAfterHands(t *testing.T, h Host) {
	hostState(t)
	before := hostState(t)
	ctx, spec := context.Background(), specs()["nat"]
	dir := filepath.Join(netsFolder(h.Runtime), spec.folder())
	for what, removes := range byHand {
		t.Run(what, func(t *testing.T) {
			if err := StartHolder(ctx, h, spec, nil); err != nil {
				t.Fatalf("%v\n%s", err, keeperLogs(h))
			}
			p, err := Attach(ctx, h, spec, testPort())
			if err != nil {
				t.Fatal(err)
			}
			r := lan(t, h)
			removes(t, dir, r)
			if what == "socket" { // nobody finds its keeper any more, but its own
				if err := unix.Kill(r.Holders[0].PID, unix.SIGTERM); err != nil {
					t.Fatal(err)
				}
			} else if err := Down(ctx, h, "lan", spec.Dir); !errors.As(err, new(*BusyError)) {
				t.Errorf("down with a VM: %v", err)
			}
			if err := p.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
			awaitAlone(t)
			if err := Down(ctx, h, "lan", spec.Dir); !errors.As(err, new(*NotFoundError)) {
				t.Errorf("down once more: %v", err)
			}
			leftNothing(t, h, before, hostState)
		})
	}
}

// TestDownOfTheDead is the same where the keeper was killed with everybody else.
func TestDownOfTheDead(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	uplinks(t)
	withEach(t, downOfTheDead)
}

func downOfTheDead(t *testing.T, h Host) {
	hostState(t)
	before := hostState(t)
	ctx, spec := context.Background(), specs()["nat"]
	dir := filepath.Join(netsFolder(h.Runtime), spec.folder())
	for what, removes := range byHand {
		if what == "TAP" { // there is none
			continue
		}
		t.Run(what, func(t *testing.T) {
			m := startMember(t, h, "nat")
			r := lan(t, h)
			halt(t, r.KeeperID) // it sees nothing of the member's end
			m.Process.Kill()
			m.Wait()
			kill(t, r.KeeperID)
			removes(t, dir, r)
			if list, err := List(ctx, h); err != nil || len(list) != 1 || list[0].State != KeeperGone {
				t.Errorf("list %+v, %v; want one whose keeper is gone", list, err)
			}
			if err := Down(ctx, h, "lan", spec.Dir); err != nil {
				t.Errorf("down: %v", err)
			}
			if diff := cmp.Diff(before, hostState(t)); diff != "" {
				t.Errorf("left behind:\n%s", diff)
			}
		})
	}
}

// TestAllFailuresAreTold: undos that fail don't keep the others from being done,
// each is told, and stays to be done.
func TestAllFailuresAreTold(t *testing.T) {
	r := newRig(t, "iptables")
	before := r.fake.state()
	if err := r.up(specs()["nat"]); err != nil {
		t.Fatal(err)
	}
	r.fake.broken = []string{"DelRules", "SetSysctl"}
	err := r.j.undo(r.w)
	if err == nil {
		t.Fatal("broken undos succeeded")
	}
	told := strings.Count(err.Error(), errInjected.Error())
	if told != len(r.j.entries) || told < 3 {
		t.Errorf("%d failures are told, %d entries are left:\n%v", told, len(r.j.entries), err)
	}
	for _, want := range []string{"delete firewall rules", "restore net.ipv4.conf.eth1.forwarding"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("not told: %s\n%v", want, err)
		}
	}
	for _, u := range r.j.undos() {
		if _, ok := u.(delLinks); ok {
			t.Errorf("not done beside what failed: %s", u)
		}
	}
	r.fake.broken = nil
	if err := r.j.undo(r.w); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(before, r.fake.state()); diff != "" {
		t.Errorf("left behind:\n%s", diff)
	}
}

// TestJumpOfAStranger: a rule of somebody else's that leads to a chain of ours keeps
// that, empty, and nothing else: it is told, and later runs go on.
func TestJumpOfAStranger(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	h, before := uplinkedHost(t)
	h.Firewall = "iptables"
	ctx, spec := context.Background(), specs()["nat"]
	p, err := Attach(ctx, h, spec, testPort())
	if err != nil {
		t.Fatal(err)
	}
	chain := "VMR-" + strings.TrimPrefix(p.Bridge(), bridgePrefix) + "-IN"
	shell(t, "iptables -A OUTPUT -j "+chain)
	for range 2 {
		if err := p.Close(); err == nil || !strings.Contains(err.Error(), chain) || !strings.Contains(err.Error(), "iptables-save") {
			t.Errorf("close: %v, want an error that names %s and who keeps it", err, chain)
		}
		if p, err = Attach(ctx, h, spec, testPort()); err != nil {
			t.Fatalf("%v\n%s", err, keeperLogs(h))
		}
	}
	shell(t, "iptables -D OUTPUT -j "+chain)
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	awaitAlone(t)
	leftNothing(t, h, before, hostState)
}

func sh(t *testing.T, script string) {
	t.Helper()
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
}
