package netsetup

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vmrun/vmrun/netsetup/libvirt"
)

const defaultUUID = "00112233445566778899aabbccddeeff"

// fakeLibvirt has one network, default, which is not active, on the fake kernel.
// Like libvirt it makes the host a router when it starts one, and leaves it so.
type fakeLibvirt struct {
	fake     *fake
	networks []libvirt.Network
	leases   map[string]libvirt.Lease // by MAC
}

func newFakeLibvirt(f *fake) fakeLibvirt {
	return fakeLibvirt{fake: f, networks: []libvirt.Network{{Name: "default", UUID: defaultUUID, Mode: "nat", Bridge: "virbr0",
		Ranges: []netip.Prefix{netip.MustParsePrefix("192.168.122.0/24")}}}}
}

func (f *fake) Libvirt() libvirtd { return &f.virt }

func (v *fakeLibvirt) Networks(context.Context) ([]libvirt.Network, error) { return v.networks, nil }

func (v *fakeLibvirt) find(uuid string) *libvirt.Network {
	for i := range v.networks {
		if v.networks[i].UUID == uuid {
			return &v.networks[i]
		}
	}
	return nil
}

func (v *fakeLibvirt) Start(_ context.Context, uuid string) (bool, error) {
	n := v.find(uuid)
	if n == nil {
		return false, libvirt.ErrGone
	}
	if n.Active {
		return false, nil
	}
	if err := v.fake.addLink(Link{Name: n.Bridge, Kind: "bridge", Up: true, MTU: 1500}); err != nil {
		return false, err
	}
	n.Active = true
	v.fake.route("1")
	return true, nil
}

// route sets ip_forward with what the kernel does then.
func (f *fake) route(value string) {
	f.sysctls[routerKey] = value
	for name := range f.links {
		f.sysctls[forwardingKey(name)] = value
	}
}

func (v *fakeLibvirt) Stop(_ context.Context, uuid string) error {
	n := v.find(uuid)
	if n == nil || !n.Active {
		return libvirt.ErrGone
	}
	if err := v.fake.change(); err != nil {
		return err
	}
	n.Active = false
	v.fake.remove(v.fake.links[n.Bridge])
	return nil
}

func (v *fakeLibvirt) Lease(_ context.Context, uuid string, mac net.HardwareAddr) (libvirt.Lease, error) {
	if n := v.find(uuid); n == nil || !n.Active {
		return libvirt.Lease{}, libvirt.ErrGone
	}
	return v.leases[mac.String()], nil
}

var (
	joinDefault  = joinLibvirt{Name: "default", UUID: defaultUUID, Bridge: "virbr0"}
	leaveDefault = leaveLibvirt{Name: "default", UUID: defaultUUID, Bridge: "virbr0", Group: 7}
)

// TestLibvirtIsStoppedByTheLast: two networks of vmrun's join one of libvirt's,
// which the first has to start; the host is as before when both have left, in
// whatever order.
func TestLibvirtIsStoppedByTheLast(t *testing.T) {
	for _, order := range [][2]int{{0, 1}, {1, 0}} {
		f, dir := newFake(), t.TempDir()
		f.sysctls[forwardingKey("eth2")] = "1" // an administrator's
		before := f.state()
		both := []*claims{{origin: "boot", dir: dir, held: map[string]*os.File{}}, {origin: "boot", dir: dir, held: map[string]*os.File{}}}
		for _, c := range both {
			if err := c.joinLibvirt(f, joinDefault); err != nil {
				t.Fatal(err)
			}
		}
		if !f.virt.networks[0].Active || f.sysctls[routerKey] != "1" {
			t.Fatal("the network was not started")
		}
		if said, err := both[order[0]].leaveLibvirt(f, leaveDefault); err != nil || said != "" || !f.virt.networks[0].Active {
			t.Errorf("the first of two left: %q, %v, active %v", said, err, f.virt.networks[0].Active)
		}
		if _, err := both[order[1]].leaveLibvirt(f, leaveDefault); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(before, f.state()); diff != "" {
			t.Errorf("left behind:\n%s", diff)
		}
	}
}

// TestLibvirtIsLeft: what is not ours to stop, or to take back, stays.
func TestLibvirtIsLeft(t *testing.T) {
	on := func(f *fake, name string, group uint32) {
		f.add(Link{Name: name, Kind: "tuntap", Group: group, Master: f.links["virbr0"].Index})
	}
	tests := []struct {
		name            string
		before, during  func(*fake)
		active, routing bool // afterwards
	}{
		{"ours alone", nil, nil, false, false},
		{"ours with our port", nil, func(f *fake) { on(f, "vmtaaaaaaaaaaaa", 7) }, false, false},
		{"ours with libvirt's own nic", nil, func(f *fake) { on(f, "virbr0-nic", 0); f.links["virbr0-nic"].Index = 0 }, false, false},
		{"was active", func(f *fake) { f.virt.Start(context.Background(), defaultUUID) }, nil, true, true},
		{"a stranger's VM is on it", nil, func(f *fake) { on(f, "vnet0", 0) }, true, true},
		{"started anew by somebody", nil, func(f *fake) {
			f.virt.Stop(context.Background(), defaultUUID)
			f.virt.Start(context.Background(), defaultUUID)
		}, true, true},
		{"stopped by somebody", nil, func(f *fake) { f.virt.Stop(context.Background(), defaultUUID) }, false, false},
		{"a router before", func(f *fake) { f.route("1") }, nil, false, true},
		{"Docker came", nil, func(f *fake) { f.add(Link{Name: "docker0", Kind: "bridge"}) }, false, true},
		{"another one of libvirt's is active", nil, func(f *fake) {
			f.virt.networks = append(f.virt.networks, libvirt.Network{Name: "lab", UUID: "ff", Active: true, Bridge: "virbr1"})
		}, false, true},
	}
	for _, tt := range tests {
		f := newFake()
		c := &claims{origin: "boot", dir: t.TempDir(), held: map[string]*os.File{}}
		if tt.before != nil {
			tt.before(f)
		}
		if err := c.joinLibvirt(f, joinDefault); err != nil {
			t.Fatal(err)
		}
		if tt.during != nil {
			tt.during(f)
		}
		if _, err := c.leaveLibvirt(f, leaveDefault); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if got := f.virt.networks[0].Active; got != tt.active {
			t.Errorf("%s: active %v, want %v", tt.name, got, tt.active)
		}
		if got := f.sysctls[routerKey] == "1"; got != tt.routing {
			t.Errorf("%s: routing %v, want %v", tt.name, got, tt.routing)
		}
	}
}

// TestLibvirtRouterIsTakenBackLater: while a nat network of vmrun's forwards, the
// host stays a router; the sweep after it makes up for it.
func TestLibvirtRouterIsTakenBackLater(t *testing.T) {
	f, dir := newFake(), t.TempDir()
	before := f.state()
	virt := &claims{origin: "boot", dir: dir, held: map[string]*os.File{}}
	nat := &claims{origin: "boot", dir: dir, held: map[string]*os.File{}}
	if err := virt.joinLibvirt(f, joinDefault); err != nil {
		t.Fatal(err)
	}
	if err := nat.forward(f, "eth1"); err != nil {
		t.Fatal(err)
	}
	if said, err := virt.leaveLibvirt(f, leaveDefault); err != nil || said == "" {
		t.Errorf("leave: %q, %v", said, err)
	}
	if f.sysctls[forwardingKey("eth1")] != "1" {
		t.Error("the nat network was cut off")
	}
	if err := nat.unforward(f, "eth1"); err != nil {
		t.Fatal(err)
	}
	if _, err := virt.sweepFile(f, libvirtPrefix+defaultUUID); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(before, f.state()); diff != "" {
		t.Errorf("left behind:\n%s", diff)
	}
}

// TestLibvirtIsSwept: a keeper that is killed leaves the network to whoever comes
// next, also one that was killed before it saw the start's end.
func TestLibvirtIsSwept(t *testing.T) {
	for _, seen := range []bool{true, false} {
		f, dir := newFake(), t.TempDir()
		before := f.state()
		killed := &claims{origin: "boot/1", dir: dir, held: map[string]*os.File{}}
		if err := killed.joinLibvirt(f, joinDefault); err != nil {
			t.Fatal(err)
		}
		if !seen {
			s := started{Name: "default", Bridge: "virbr0", Router: "0", Links: map[string]linkForwarding{}}
			for _, l := range f.links {
				s.Links[l.Name] = linkForwarding{l.Index, "0"}
			}
			if err := writeStarted(killed.libvirtPath(defaultUUID), s); err != nil {
				t.Fatal(err)
			}
		}
		next := &claims{origin: "boot/1", dir: dir, held: map[string]*os.File{}}
		if line, err := next.sweepFile(f, libvirtPrefix+defaultUUID); err != nil || line != "" {
			t.Errorf("swept while somebody uses it: %q, %v", line, err)
		}
		killed.drop(libvirtPrefix + defaultUUID)
		line, err := next.sweepFile(f, libvirtPrefix+defaultUUID)
		if err != nil || line != "stopped libvirt's network default" {
			t.Errorf("sweep: %q, %v", line, err)
		}
		if diff := cmp.Diff(before, f.state()); diff != "" {
			t.Errorf("left behind:\n%s", diff)
		}
		if line, err := next.sweepFile(f, libvirtPrefix+defaultUUID); err != nil || line != "" {
			t.Errorf("second sweep: %q, %v", line, err)
		}
	}
}

// TestLibvirtOfAnother: what is noted of a network that was started in another
// network namespace is void, and emptied by the first sweep.
func TestLibvirtOfAnother(t *testing.T) {
	f, dir := newFake(), t.TempDir()
	gone := &claims{origin: "boot/1", dir: dir, held: map[string]*os.File{}}
	if err := gone.joinLibvirt(f, joinDefault); err != nil {
		t.Fatal(err)
	}
	gone.drop(libvirtPrefix + defaultUUID)
	before := f.state()
	next := &claims{origin: "boot/2", dir: dir, held: map[string]*os.File{}}
	if line, err := next.sweepFile(f, libvirtPrefix+defaultUUID); err != nil || line != "" {
		t.Errorf("swept in another network namespace: %q, %v", line, err)
	}
	if diff := cmp.Diff(before, f.state()); diff != "" {
		t.Errorf("changed:\n%s", diff)
	}
	if fi, err := os.Stat(next.libvirtPath(defaultUUID)); err != nil || fi.Size() > 0 {
		t.Errorf("what was noted: %v, %v; want it empty", fi, err)
	}
}

// TestLibvirtForgotten: what is noted of a network of libvirt's goes with the
// journal of a namespace that is gone.
func TestLibvirtForgotten(t *testing.T) {
	if !inNamespaces(t) {
		return // its claims are below /run
	}
	gone := must(here())
	if gone.Cookie == 0 {
		skip(t, "cookie", "needs SO_NETNS_COOKIE, of Linux 5.14")
	}
	gone.Cookie++ // so that this namespace has got its inode
	h, dir := Host{Runtime: t.TempDir()}, t.TempDir()
	c := must(claimsIn(h.Runtime, gone))
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := writeStarted(c.libvirtPath(defaultUUID), started{Name: "default", Origin: c.origin}); err != nil {
		t.Fatal(err)
	}
	line := fmt.Sprintf(`{"v":1,"in":{"net":%d,"pid":%d,"cookie":%d},"seq":1,"undo":{"op":"leave-libvirt","arg":{"uuid":%q}}}`+"\n",
		gone.Net, gone.PID, gone.Cookie, defaultUUID)
	if err := os.WriteFile(filepath.Join(dir, "journal"), []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	if lines, err := forgetGone(h, dir); err != nil || len(lines) != 1 {
		t.Errorf("forgot %q, %v", lines, err)
	}
	if fi, err := os.Stat(c.libvirtPath(defaultUUID)); err != nil || fi.Size() > 0 {
		t.Errorf("what was noted: %v, %v; want it empty", fi, err)
	}
}

// TestLeaseIsTheGuests: a lease from before is no address of the guest's, unless
// it never ends.
func TestLeaseIsTheGuests(t *testing.T) {
	old := libvirt.Lease{IP: netip.MustParseAddr("192.168.122.9"), Expires: time.Unix(1000, 0)}
	renewed, endless := old, libvirt.Lease{IP: old.IP}
	renewed.Expires = time.Unix(2000, 0)
	for _, tt := range []struct {
		known, now libvirt.Lease
		want       bool
	}{
		{libvirt.Lease{}, libvirt.Lease{}, false},
		{libvirt.Lease{}, old, true},
		{old, old, false},
		{old, renewed, true},
		{endless, endless, true},
	} {
		if got := isGuests(tt.known, tt.now); got != tt.want {
			t.Errorf("known %v, now %v: %v", tt.known, tt.now, got)
		}
	}
}
