package netsetup

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// backWithin is how long it may take after a kill until the host has its uplink
// back: more than the 2 s that a user is promised, and much more where tests share
// the machine.
func backWithin() time.Duration {
	if long() {
		return 5 * time.Second
	}
	return 30 * time.Second
}

// named lists the living processes whose first argument is a word.
func named(t *testing.T, word string) []int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, path := range stats {
		text, _ := os.ReadFile(path)
		if args := strings.Split(string(text), "\x00"); len(args) > 1 && args[1] == word {
			var pid int
			fmt.Sscanf(path, "/proc/%d/", &pid)
			pids = append(pids, pid)
		}
	}
	return pids
}

func one(t *testing.T, word string) int {
	t.Helper()
	pids := named(t, word)
	if len(pids) != 1 {
		t.Fatalf("%s processes %v, want one", word, pids)
	}
	return pids[0]
}

// TestTakeoverKilled ends keeper, dead-man and member by SIGKILL in each order:
// without another command the host has its uplink back, but where all are killed
// at once, which takes a sweep.
func TestTakeoverKilled(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	usedUplink(t)
	h := testHost(t)
	network(t)
	before := network(t)
	s := newSession(t, "192.0.2.2:0")
	for _, c := range []struct {
		order string
		sweep bool
	}{
		{"member", false},
		{"member keeper", false},
		{"keeper member", false},
		{"deadman member", false},
		{"all", true},
	} {
		t.Run(c.order, func(t *testing.T) {
			m := startTakeoverMember(t, h)
			folder := filepath.Join(netsFolder(h.Runtime), takeoverSpec().folder())
			if err := (holdMark{ID: "of a dead holder"}).save(folder); err != nil {
				t.Fatal(err)
			}
			for who := range strings.FieldsSeq(c.order) {
				switch who {
				case "member":
					m.Process.Kill()
					m.Wait()
				case "all":
					killTogether(t, append(named(t, "keeper"), named(t, "deadman")...), m.Process.Pid)
					m.Wait()
				default:
					for _, pid := range named(t, who) {
						kill(t, pid)
					}
				}
			}
			started := time.Now()
			awaitAlone(t)
			if took := time.Since(started); took > backWithin() {
				t.Errorf("it took %v until the host had its uplink back", took)
			} else {
				t.Logf("the host had its uplink back after %v", took)
			}
			if c.sweep {
				if ip(t, "link", "show", "eth0"); !strings.Contains(ip(t, "link", "show", "eth0"), "master vmu") {
					t.Error("somebody was left to give the uplink back")
				}
				s.works(t) // the bridge serves the host meanwhile
				if _, err := Sweep(context.Background(), h); err != nil {
					t.Error(err)
				}
			}
			s.works(t)
			leftNothing(t, h, before, network)
			if exists(filepath.Join(folder, holdName)) {
				t.Error("a dead holder's mark was left")
			}
		})
	}
}

// startTakeoverMember runs a member in a process of its own.
func startTakeoverMember(t *testing.T, h Host) *exec.Cmd {
	t.Helper()
	return startMember(t, h, "used-uplink")
}

// killTogether stops processes first, so that none acts on another's end.
func killTogether(t *testing.T, pids []int, more ...int) {
	t.Helper()
	pids = append(pids, more...)
	halt(t, pids...)
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	for _, pid := range pids[:len(pids)-1] { // the last is the caller's child
		awaitEnd(t, pid, 0)
	}
}

// TestTakeoverIsAdopted: while a VM runs, a killed keeper is replaced, with a
// dead-man of its own, and the uplink stays on the bridge.
func TestTakeoverIsAdopted(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	usedUplink(t)
	h := testHost(t)
	network(t)
	before := network(t)
	s := newSession(t, "192.0.2.2:0")
	p, err := Attach(context.Background(), h, takeoverSpec(), testPort())
	if err != nil {
		t.Fatalf("%v\n%s", err, keeperLogs(h))
	}
	for range 3 {
		keeper, man := one(t, "keeper"), one(t, "deadman")
		kill(t, keeper)
		b, err := Attach(context.Background(), h, takeoverSpec(), portOf(2)) // waits for the next keeper
		if err != nil {
			t.Fatalf("%v\n%s", err, keeperLogs(h))
		}
		s.works(t)
		awaitEnd(t, man, 0)
		if next := one(t, "deadman"); next == man {
			t.Error("the adopting keeper has no dead-man")
		}
		if !strings.Contains(ip(t, "link", "show", "eth0"), "master "+p.Bridge()) {
			t.Error("the uplink was given back while a VM runs")
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	awaitAlone(t)
	s.works(t)
	leftNothing(t, h, before, network)
}

// TestDeadmanIsReplaced: a keeper whose dead-man was killed starts another one,
// which does its duty.
func TestDeadmanIsReplaced(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	usedUplink(t)
	h := testHost(t)
	network(t)
	before := network(t)
	m := startTakeoverMember(t, h)
	kill(t, one(t, "deadman"))
	for replaced := false; !replaced; {
		replaced = len(named(t, "deadman")) > 0
		// The keeper answers nobody while it starts one.
		p, err := Attach(context.Background(), h, takeoverSpec(), portOf(2))
		if err != nil {
			t.Fatalf("%v\n%s", err, keeperLogs(h))
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	killTogether(t, named(t, "keeper"), m.Process.Pid)
	m.Wait()
	awaitAlone(t)
	leftNothing(t, h, before, network)
}

// TestTakeoverWithoutGateway: if the gateway does not answer on the bridge, all
// goes back, and the member is told.
func TestTakeoverWithoutGateway(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	usedUplink(t)
	h := testHost(t)
	network(t)
	before := network(t)
	ip(t, "-n", "lan", "link", "set", "far", "arp", "off")
	_, err := Attach(context.Background(), h, takeoverSpec(), testPort())
	if err == nil || !strings.Contains(err.Error(), "the default gateway does not answer on the bridge within 5s (no answer from 192.0.2.1)") {
		t.Errorf("got %v", err)
	}
	ip(t, "-n", "lan", "link", "set", "far", "arp", "on")
	awaitAlone(t)
	leftNothing(t, h, before, network)
}

// TestOthersChangesComeBack: what somebody did on the bridge is on the uplink
// afterwards.
func TestOthersChangesComeBack(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	usedUplink(t)
	h := testHost(t)
	p, err := Attach(context.Background(), h, takeoverSpec(), testPort())
	if err != nil {
		t.Fatalf("%v\n%s", err, keeperLogs(h))
	}
	for _, line := range []string{
		"addr add 192.0.2.40/24 dev BRIDGE",
		"addr change 192.0.2.2/24 dev BRIDGE valid_lft 90000 preferred_lft 80000",
		"addr del 198.51.100.2/24 dev BRIDGE",
		"route add 10.9.0.0/16 via 192.0.2.1 dev BRIDGE",
		"route del 10.4.0.0/16 dev BRIDGE",
		"-6 addr add 2001:db8::40/64 dev BRIDGE nodad",
	} {
		ip(t, strings.Fields(strings.ReplaceAll(line, "BRIDGE", p.Bridge()))...)
	}
	if err := p.Close(); err != nil {
		t.Errorf("%v\n%s", err, keeperLogs(h))
	}
	after := ip(t, "-4", "addr", "show", "dev", "eth0") + ip(t, "-6", "addr", "show", "dev", "eth0", "permanent") + ip(t, "route", "show", "dev", "eth0")
	for text, want := range map[string]bool{
		"192.0.2.40/24": true, "valid_lft 3": false, "198.51.100.2/24": false,
		"10.9.0.0/16": true, "10.4.0.0/16": false, "2001:db8::40/64": true,
	} {
		if strings.Contains(after, text) != want {
			t.Errorf("%s on eth0: %t, want %t\n%s", text, !want, want, after)
		}
	}
}

// lentUplink is a host with a used uplink that a network has taken over, its state
// before, a session with the outside, and the network's port.
func lentUplink(t *testing.T) (h Host, before string, s *session, p *Port) {
	t.Helper()
	usedUplink(t)
	h = testHost(t)
	network(t)
	s = newSession(t, "192.0.2.2:0")
	ip(t, "link", "del", "vpn") // its route has the uplink's address as source: the kernel drops it with a bridge that is deleted
	before = network(t)
	p, err := Attach(context.Background(), h, takeoverSpec(), testPort())
	if err != nil {
		t.Fatalf("%v\n%s", err, keeperLogs(h))
	}
	return h, before, s, p
}

// TestBridgeRemovedByHand: whoever deletes the bridge, or sets it down, takes with
// it what the uplink had; it is restored from the journal, at once.
func TestBridgeRemovedByHand(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	h, before, s, p := lentUplink(t)
	for _, how := range []string{"link set down dev", "link del"} {
		ip(t, append(strings.Fields(how), p.Bridge())...)
		s.works(t) // without a command
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	awaitAlone(t)
	leftNothing(t, h, before, network)
}

// TestBridgeOfUplinkReplaced: whoever gives the bridge's name to another link takes
// it away as well; the uplink gets nothing that the other has, nor is that touched.
func TestBridgeOfUplinkReplaced(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	h, before, s, p := lentUplink(t)
	keeper := only(t)
	halt(t, keeper) // it sees the bridge gone only when the other one is there
	for _, line := range []string{"link del BRIDGE", "link add BRIDGE up type bridge", "addr add 10.99.0.1/24 dev BRIDGE"} {
		ip(t, strings.Fields(strings.ReplaceAll(line, "BRIDGE", p.Bridge()))...)
	}
	if err := unix.Kill(keeper, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	s.works(t) // without a command
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	awaitAlone(t)
	if has := ip(t, "-4", "addr", "show", "dev", p.Bridge()); !strings.Contains(has, "10.99.0.1/24") {
		t.Errorf("the other link has lost its address: %s", has)
	}
	ip(t, "link", "del", p.Bridge())
	leftNothing(t, h, before, network)
}

// TestBridgeOfUplinkRenamed: a bridge that somebody has given another name leaves the
// host its uplink, too.
func TestBridgeOfUplinkRenamed(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	h, before, s, p := lentUplink(t)
	rename(t, p.Bridge(), "other")
	s.works(t) // without a command
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	awaitAlone(t)
	leftNothing(t, h, before, network)
}

// TestDeadmanWithoutJournal: a journal that was removed meanwhile takes nothing
// from a dead-man, which knows by itself what there is to undo, whatever has become
// of the bridge.
func TestDeadmanWithoutJournal(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	usedUplink(t)
	shell(t, "ip route del 10.7.0.0/16") // it goes with the address of another link's, if that goes
	h := testHost(t)
	network(t)
	before := network(t)
	bridge := uplinkPrefix + "*"
	for _, happens := range []string{"", "ip link del BRIDGE", "ip link set BRIDGE down; ip link set BRIDGE name other"} {
		m := startTakeoverMember(t, h)
		names, err := filepath.Glob("/sys/class/net/" + bridge)
		if err != nil || len(names) != 1 {
			t.Fatalf("bridges %v, %v", names, err)
		}
		if err := os.Remove(filepath.Join(netsFolder(h.Runtime), takeoverSpec().folder(), "journal")); err != nil {
			t.Fatal(err)
		}
		man := one(t, "deadman")
		halt(t, man)
		killTogether(t, named(t, "keeper"), m.Process.Pid)
		m.Wait()
		shell(t, strings.ReplaceAll(happens, "BRIDGE", filepath.Base(names[0])))
		awaitEnd(t, man, unix.SIGCONT)
		leftNothing(t, h, before, network)
		if t.Failed() {
			t.Fatalf("after %q", happens)
		}
	}
}
