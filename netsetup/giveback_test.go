package netsetup

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vmrun/vmrun/netsetup/uplink"
)

// TestGiveBackOfWhatHasEnded: an address that ended while it was nowhere does not
// come back.
func TestGiveBackOfWhatHasEnded(t *testing.T) {
	f := newFake()
	state, _ := used()
	link, err := f.find("eth1")
	if err != nil {
		t.Fatal(err)
	}
	f.ip["eth1"] = &onLink{} // a bridge that is gone took it along
	f.uptime = time.Hour
	back := giveBack{Uplink: "eth1", Index: link.Index, Bridge: "vmugone", State: state}
	if err := back.do(&effects{kernel: f}); err != nil {
		t.Fatal(err)
	}
	got, err := f.State("eth1")
	if err != nil {
		t.Fatal(err)
	}
	var addresses []uplink.Address
	addresses = append(addresses, state.Addresses[1:]...) // the first had 3600 s
	if diff := cmp.Diff(addresses, got.Addresses, cmp.Comparer(func(a, b uplink.Address) bool { return a.String() == b.String() })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestLentAnew: after a renewal the journal has the lifetimes of now, and where the
// keeper was killed before the old entry was crossed out, the undo is the same.
func TestLentAnew(t *testing.T) {
	for _, how := range []string{"", "killed", "deleted", "killed deleted"} {
		k, world := fakeKeeper(t)
		k.phase, k.network = up, Resolved{Spec: specs()["bridge-takeover"], Link: "vmuone"}
		world.add(Link{Name: "vmuone", Kind: "bridge", Up: true})
		uplinkLink, bridge := world.links["eth1"], world.links["vmuone"]
		uplinkLink.Master, k.bridge = bridge.Index, bridge.Index
		world.ip = map[string]*onLink{"vmuone": {State: usedFor(7200)}} // it was renewed just now
		old := giveBack{Uplink: "eth1", Index: uplinkLink.Index, Bridge: "vmuone", State: usedFor(3600)}
		if err := k.journal.record(old); err != nil {
			t.Fatal(err)
		}
		world.uptime = 30 * time.Minute
		k.relend()
		back, seqs := k.lent()
		if len(seqs) != 1 || back.Read != world.uptime || back.State.Addresses[0].Valid != 7200 {
			t.Fatalf("%d entries, the last: %+v", len(seqs), back)
		}
		if strings.Contains(how, "killed") {
			if err := errors.Join(k.journal.cross(seqs[0]), k.journal.record(old), k.journal.record(back)); err != nil {
				t.Fatal(err)
			}
		}
		want := usedFor(7200)
		if strings.Contains(how, "deleted") {
			world.remove(bridge)
			want = want.Later(time.Hour)
		}
		world.uptime += time.Hour // the first lease has ended
		if err := k.journal.undo(k.w); err != nil || len(k.journal.entries) > 0 {
			t.Errorf("%s: %v, %d entries are left", how, err, len(k.journal.entries))
		}
		sameIP(t, world, "eth1", want)
	}
}

// usedFor is what the fake's uplink has of IP, its lease lasting for some seconds.
func usedFor(seconds uint32) uplink.State {
	s, _ := used()
	s.Addresses[0].Valid, s.Addresses[0].Preferred = seconds, seconds
	return s
}

// sameIP compares what a link has with what it should have.
func sameIP(t *testing.T, world *fake, link string, want uplink.State) {
	t.Helper()
	got, err := world.State(link)
	if err != nil {
		t.Fatal(err)
	}
	want.Routes, got.Routes = want.Sorted(), got.Sorted()
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestAdoptionGivesBackWhatItCan: routes that need an address that has ended while
// it was nowhere are told and given up; all else comes back, and another run is not
// kept from starting.
func TestAdoptionGivesBackWhatItCan(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	for _, line := range []string{
		"link add eth0 type veth peer name far",
		"link set far up",
		"link set eth0 up",
		"addr add 192.0.2.2/24 dev eth0 valid_lft 3600 preferred_lft 3600",
		"addr add 198.51.100.2/24 dev eth0",
		"-6 addr add 2001:db8::2/64 dev eth0 nodad valid_lft 3600 preferred_lft 3600",
		"route add default via 192.0.2.1",
		"route add 10.1.0.0/16 via 198.51.100.1 src 192.0.2.2",
		"route add 10.2.0.0/16 via 198.51.100.1",
		"-6 route add 2001:db8:1::/48 via 2001:db8::1",
	} {
		ip(t, strings.Fields(line)...)
	}
	settleLinkLocal(t)
	k, told := realKeeper(t)
	state, err := k.w.kernel.State("eth0")
	if err != nil {
		t.Fatal(err)
	}
	link, err := net.InterfaceByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	ip(t, "addr", "flush", "dev", "eth0")
	twoHoursAgo := k.w.kernel.Uptime() - 2*time.Hour
	if err := k.journal.record(giveBack{Uplink: "eth0", Index: link.Index, Bridge: "vmugone", State: state, Read: twoHoursAgo}); err != nil {
		t.Fatal(err)
	}
	ip(t, "link", "set", "eth0", "down")
	if err := k.adopt(t.Context()); err == nil || len(k.journal.entries) != 1 {
		t.Errorf("given up while the uplink is down: %v, %d entries", err, len(k.journal.entries))
	}
	ip(t, "link", "set", "eth0", "up")
	if err := k.adopt(t.Context()); err != nil || len(k.journal.entries) != 0 {
		t.Errorf("%v, %d entries are left", err, len(k.journal.entries))
	}
	for _, route := range []string{"default via 192.0.2.1", "10.1.0.0/16 via 198.51.100.1 src 192.0.2.2", "2001:db8:1::/48 via 2001:db8::1"} {
		if !strings.Contains(told.String(), "route "+route) {
			t.Errorf("nobody was told of the route %s:\n%s", route, told)
		}
	}
	if got := ip(t, "route", "show", "dev", "eth0"); !strings.Contains(got, "10.2.0.0/16 via 198.51.100.1") || strings.Contains(got, "192.0.2.0/24") {
		t.Errorf("the uplink's routes:\n%s", got)
	}
}

// realKeeper is a keeper that nobody has asked for anything, on the kernel, and
// what it logs.
func realKeeper(t *testing.T) (*keeper, *bytes.Buffer) {
	t.Helper()
	h, told := testHost(t), new(bytes.Buffer)
	h.Log = slog.New(slog.NewTextHandler(told, nil))
	dir := filepath.Join(netsFolder(h.Runtime), takeoverSpec().folder())
	if err := os.MkdirAll(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	lock, err := lockForLife(filepath.Join(dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	real, err := newHost(lock)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(real.close)
	k, err := newKeeper(h, dir, real)
	if err != nil {
		t.Fatal(err)
	}
	return k, told
}

// asking is a kernel that notes whether routers were asked for news.
type asking struct {
	kernel
	asked bool
}

func (k *asking) Solicit(link string) error {
	k.asked = true
	return k.kernel.Solicit(link)
}

// TestGiveBackAsksRouters: also where the route that a router has advertised has
// ended since.
func TestGiveBackAsksRouters(t *testing.T) {
	f := newFake()
	k := &asking{kernel: f}
	state, _ := used()
	state.Routes[0].Advertised, state.Routes[0].Expires = true, 1800
	f.ip["eth1"], f.uptime = &onLink{}, time.Hour
	back := giveBack{Uplink: "eth1", Index: f.links["eth1"].Index, Bridge: "vmugone", State: state}
	if err := back.do(&effects{kernel: k}); err != nil || !k.asked {
		t.Errorf("asked: %t, %v", k.asked, err)
	}
}
