package netsetup

import (
	"log/slog"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestMend: whatever somebody takes away from a network's links is put back, and
// what is another's decision is left.
func TestMend(t *testing.T) {
	tap := func(n names) string { return n.tap(testPort()) }
	tests := []struct {
		name, spec string
		spoil      func(*fake, names)
		left       bool // as it is then
	}{
		{"nothing", "nat", func(*fake, names) {}, false},
		{"address", "nat", func(f *fake, n names) { f.links[n.bridge].Addrs = nil }, false},
		{"bridge down", "nat", func(f *fake, n names) { f.links[n.bridge].Up = false }, false},
		{"IPv6", "nat", func(f *fake, n names) { f.sysctls["net/ipv6/conf/"+n.bridge+"/disable_ipv6"] = "0" }, false},
		{"forwarding", "nat", func(f *fake, n names) { f.sysctls[forwardingKey(n.bridge)] = "0" }, false},
		{"forwarding of a closed network", "host-only", func(f *fake, n names) { f.sysctls[forwardingKey(n.bridge)] = "1" }, false},
		{"port", "nat", func(f *fake, n names) { f.links[tap(n)].Master = 0; delete(f.pins, tap(n)) }, false},
		{"port of a joined bridge", "bridge-join", func(f *fake, n names) { f.links[tap(n)].Master = 0; delete(f.pins, tap(n)) }, false},
		{"port down", "nat", func(f *fake, n names) { f.links[tap(n)].Up = false }, false},
		{"IPv6 of a port", "nat", func(f *fake, n names) { f.sysctls["net/ipv6/conf/"+tap(n)+"/disable_ipv6"] = "0" }, false},
		{"uplink", "bridge-uplink", func(f *fake, _ names) { f.links["eth2"].Master = 0 }, false},
		{"VLAN", "vlan", func(f *fake, n names) { f.links[n.vlan].Master = 0 }, false},
		{"uplink that is another's now", "bridge-uplink", func(f *fake, _ names) { f.links["eth2"].Master = f.links["br0"].Index }, true},
		{"joined bridge down", "bridge-join", func(f *fake, _ names) { f.links["br0"].Up = false }, true},
		{"bridge gone", "nat", func(f *fake, n names) { f.remove(f.links[n.bridge]) }, true},
		{"joined bridge gone", "bridge-join", func(f *fake, _ names) { f.remove(f.links["br0"]) }, true},
		{"another link of the bridge's name", "nat", func(f *fake, n names) {
			f.remove(f.links[n.bridge])
			f.add(Link{Name: n.bridge, Kind: "bridge"})
		}, true},
		{"port gone", "nat", func(f *fake, n names) { f.remove(f.links[tap(n)]) }, true},
	}
	for _, tt := range tests {
		r := newRig(t, "iptables")
		spec := specs()[tt.spec]
		n := newNames("test", spec)
		if err := r.up(spec); err != nil {
			t.Fatal(err)
		}
		resolved, err := resolve(spec, n, testFacts())
		if err != nil {
			t.Fatal(err)
		}
		k := &keeper{phase: up, network: resolved, names: n, w: r.w, log: slog.New(slog.DiscardHandler),
			ports: map[string]*holding{"a": {portRecord: portRecord{ID: "a", Spec: testPort()}}}}
		if err := k.noteBridge(); err != nil {
			t.Fatal(err)
		}
		before := r.fake.state()
		tt.spoil(r.fake, n)
		spoilt := r.fake.state()
		mended, err := k.mend()
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		want := before
		if tt.left {
			want = spoilt
		}
		if diff := cmp.Diff(want, r.fake.state()); diff != "" {
			t.Errorf("%s: did %q, differs:\n%s", tt.name, mended, diff)
		}
		if again, err := k.mend(); len(again) > 0 || err != nil {
			t.Errorf("%s: mended twice: %q, %v", tt.name, again, err)
		}
	}
}
