package netsetup

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmrun/vmrun/netsetup/firewall"
	"github.com/vmrun/vmrun/netsetup/libvirt"
	"github.com/vmrun/vmrun/netsetup/uplink"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-want +got):\n%s", path, diff)
	}
}

// specs is one network of each kind; the same table goes through the plan, the
// fault injection and, in package integration, a real kernel.
func specs() map[string]Spec {
	return map[string]Spec{
		"nat": {Name: "lan", Dir: "/home/me/web", Mode: NAT, DHCP: true, DNS: true, HostAccess: HostServices,
			Subnet: netip.MustParsePrefix("10.70.0.0/24")},
		"host-only": {Name: "host-only", Shared: true, Mode: HostOnly, DHCP: true, DNS: true, HostAccess: HostAll},
		"vlan": {Name: "acme", Dir: "/home/me/web", Mode: VLAN, Uplink: "eth2", VLAN: 10, Tenant: "acme", DHCP: true,
			HostAccess: HostNone, Subnet: netip.MustParsePrefix("10.80.0.0/24")},
		"bridge-uplink":   {Name: "lan", Dir: "/home/me/web", Mode: Bridge, Uplink: "eth2", HostAccess: HostNone},
		"bridge-takeover": {Name: "lan", Dir: "/home/me/web", Mode: Bridge, Uplink: "eth1", Takeover: true, HostAccess: HostAll},
		"bridge-join":     {Name: "lan", Dir: "/home/me/web", Mode: Bridge, Bridge: "br0"},
	}
}

// plannedSpecs is specs with what takes more than a kernel: package integration
// has the daemon for it.
func plannedSpecs() map[string]Spec {
	all := specs()
	all["libvirt"] = Spec{Name: "lan", Dir: "/home/me/web", Mode: Bridge, Libvirt: "default"}
	return all
}

func testPort() PortSpec {
	return PortSpec{VM: "web", NIC: 0, MAC: MAC{0x52, 0x54, 0, 1, 2, 3}, Queues: 1}
}

// backends are what carries rules, and a host of each kind.
var backends = map[string]firewall.Facts{
	"nftables":  {},
	"iptables":  {NoNFTables: "this kernel has no NAT for it", Command: firewall.IPTables},
	"firewalld": {Firewalld: true},
	"docker": {Filters: []firewall.Filter{
		{Backend: firewall.IPTablesNFT, Docker: true, Blocks: true},
		{Backend: firewall.IPTablesLegacy},
	}},
}

func testFacts() Facts {
	f := newFake()
	f.add(Link{Name: "br0", Kind: "bridge", Up: true, MTU: 9000})
	links, _ := f.Links()
	u, _ := f.Inspect("eth1", "")
	return Facts{Links: links, Routes: f.routes, Firewall: backends["iptables"], Forward: map[string]bool{}, Libvirt: f.virt.networks,
		Uplinks: map[string]uplink.Facts{"eth1": u}}
}

// onEachBackend runs a test on a host of each kind.
func onEachBackend(t *testing.T, name string, f func(t *testing.T, backend string)) {
	t.Helper()
	for _, b := range slices.Sorted(maps.Keys(backends)) {
		t.Run(strings.TrimPrefix(name+" "+b, " "), func(t *testing.T) { f(t, b) })
	}
}

func TestPlanGolden(t *testing.T) {
	for name, spec := range plannedSpecs() {
		onEachBackend(t, name, func(t *testing.T, backend string) {
			facts := testFacts()
			facts.Firewall = backends[backend]
			p, err := NewPlan(spec, []PortSpec{testPort()}, "test", facts)
			if err != nil {
				t.Fatal(err)
			}
			again, err := NewPlan(spec, []PortSpec{testPort()}, "test", facts)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(p, again); diff != "" {
				t.Errorf("the same input gave another plan:\n%s", diff)
			}
			var b strings.Builder
			fmt.Fprintf(&b, "bridge %s subnet %s\n", p.Bridge, p.Subnet)
			for _, s := range append(p.Steps, p.Ports[0].Steps...) {
				fmt.Fprintf(&b, "%s\n\tundo: %s\n", s.Do, s.Undo)
			}
			golden(t, name+"."+backend+".plan", b.String())
		})
	}
}

// TestPlanHasOneUndoForEachLasting thing: whatever outlives its step's process
// and is not part of something else has an undo.
func TestPlanUndoesWhatLasts(t *testing.T) {
	for name, spec := range plannedSpecs() {
		onEachBackend(t, name, func(t *testing.T, b string) {
			facts := testFacts()
			facts.Firewall = backends[b]
			n := newNames("test", spec)
			r, steps, err := planNetwork(spec, n, facts)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range append(steps, planPort(r, n, testPort())...) {
				switch s.do.(type) {
				case addBridge, addVLAN, openTAP, addRules, joinLibvirt, forward:
					if s.undo == nil {
						t.Errorf("%s has no undo", s.do)
					}
				}
			}
		})
	}
}

func TestConflicts(t *testing.T) {
	eth2 := func(change func(*Link)) func(*Facts) {
		return func(f *Facts) {
			for i := range f.Links {
				if f.Links[i].Name == "eth2" {
					change(&f.Links[i])
				}
			}
		}
	}
	route := func(dst, link string) func(*Facts) {
		return func(f *Facts) {
			f.Routes = append(f.Routes, Route{Dst: netip.MustParsePrefix(dst), Link: link, Table: 52})
		}
	}
	libvirtHas := func(r string) func(*Facts) {
		return func(f *Facts) { f.Libvirt[0].Ranges = []netip.Prefix{netip.MustParsePrefix(r)} }
	}
	none := func(*Facts) {}
	tests := []struct {
		spec   string
		change func(*Facts)
		want   string // "" for success
	}{
		{"nat", none, ""},
		{"nat", route("10.70.0.0/16", "eth1"), "subnet: 10.70.0.0/24 is taken: 10.70.0.0/16 is routed to eth1 (table 52)"},
		{"nat", route("10.70.0.128/25", "eth1"), "subnet: 10.70.0.0/24 is taken: 10.70.0.128/25 is routed to eth1 (table 52)"},
		{"nat", route("10.70.0.0/24", ""), "subnet: 10.70.0.0/24 is taken: 10.70.0.0/24 has a route of its own (table 52)"},
		{"nat", route("0.0.0.0/1", "eth1"), ""},
		{"nat", eth2(func(l *Link) { l.Addrs = []netip.Prefix{netip.MustParsePrefix("10.70.0.9/30")} }), "subnet: 10.70.0.0/24 is taken: eth2 has 10.70.0.9/30"},
		{"nat", func(f *Facts) {
			f.Firewall = firewall.Facts{NoNFTables: "no NAT", NoCommand: "iptables is not installed"}
		},
			"iptables is not installed; nftables can't carry a network here: no NAT"},
		{"nat", func(f *Facts) { f.Wish = "nftables" }, "nftables can't carry a network here: this kernel has no NAT for it"},
		{"nat", func(f *Facts) {
			f.Firewall, f.Wish = firewall.Facts{NoCommand: "iptables is not installed"}, "iptables"
		}, "iptables is not installed"},
		{"nat", libvirtHas("10.70.0.128/25"), "subnet: 10.70.0.0/24 is taken: libvirt's network default has 10.70.0.128/25"},
		{"nat", libvirtHas("10.71.0.0/24"), ""},
		{"vlan", libvirtHas("10.80.0.0/16"), "subnet: 10.80.0.0/24 is taken: libvirt's network default has 10.80.0.0/16"},
		{"libvirt", none, ""},
		{"libvirt", func(f *Facts) { f.NoLibvirt = libvirt.ErrAbsent }, "no libvirt daemon listens"},
		{"libvirt", func(f *Facts) { f.Libvirt = nil }, `libvirt: there is no network "default"; libvirt has none`},
		{"libvirt", func(f *Facts) { f.Libvirt[0].Name = "other" }, `libvirt: there is no network "default"; libvirt has other`},
		{"libvirt", func(f *Facts) { f.Libvirt[0].Bridge, f.Libvirt[0].Mode = "", "hostdev" },
			`libvirt: network "default" is of mode "hostdev", which has no bridge to join`},
		{"libvirt", func(f *Facts) { f.Libvirt[0].Active, f.Libvirt[0].Bridge = true, "eth1" },
			"libvirt: eth1 is no Linux bridge but a veth; name it as uplink to have a bridge made over it"},
		{"libvirt", func(f *Facts) { f.Libvirt[0].Active, f.Libvirt[0].Bridge = true, "br0" }, ""},
		{"vlan", none, ""},
		{"vlan", eth2(func(l *Link) { l.Name = "eth3" }), "uplink: eth2 does not exist on this host"},
		{"vlan", eth2(func(l *Link) { l.Up = false }), "uplink: eth2 is down; bring it up first (ip link set eth2 up)"},
		{"vlan", func(f *Facts) {
			l, _ := f.link("eth2")
			f.Links = append(f.Links, Link{Index: 90, Name: "eth2.10", Kind: "vlan", Parent: l.Index, VLAN: 10})
		}, "vlan: VLAN 10 of eth2 is taken by eth2.10"},
		{"vlan", func(f *Facts) {
			l, _ := f.link("eth2")
			f.Links = append(f.Links, Link{Index: 90, Name: "eth2.11", Kind: "vlan", Parent: l.Index, VLAN: 11})
		}, ""},
		{"bridge-uplink", none, ""},
		{"bridge-uplink", eth2(func(l *Link) { l.Wireless = true }), "uplink: eth2 is Wi-Fi, whose access point takes frames of one station only; use mode nat"},
		{"bridge-uplink", eth2(func(l *Link) { l.Addrs = []netip.Prefix{netip.MustParsePrefix("198.51.100.1/24")} }),
			"uplink: eth2 is in use by the host (it has 198.51.100.1/24); bridging it would cut the host off: takeover = true moves that to the bridge, and back at the end"},
		{"bridge-uplink", eth2(func(l *Link) { l.Addrs = []netip.Prefix{netip.MustParsePrefix("2001:db8::2/64")} }),
			"uplink: eth2 is in use by the host (it has 2001:db8::2/64); bridging it would cut the host off: takeover = true moves that to the bridge, and back at the end"},
		{"bridge-uplink", eth2(func(l *Link) { l.Addrs = []netip.Prefix{netip.MustParsePrefix("fe80::2/64")} }), ""},
		{"bridge-uplink", route("fe80::/64", "eth2"), ""},
		{"bridge-uplink", route("::/0", "eth2"), "uplink: eth2 is in use by the host (::/0, the default route, is routed to it); bridging it would cut the host off: takeover = true moves that to the bridge, and back at the end"},
		{"bridge-uplink", eth2(func(l *Link) { l.Kind = "bridge" }), `uplink: eth2 is a bridge; to join it use mode bridge with bridge = "eth2"`},
		{"vlan", eth2(func(l *Link) { l.Wireless = true }), "uplink: eth2 is Wi-Fi, whose access point takes frames of one station only; use mode nat"},
		{"bridge-uplink", route("0.0.0.0/0", "eth2"), "uplink: eth2 is in use by the host (0.0.0.0/0, the default route, is routed to it); bridging it would cut the host off: takeover = true moves that to the bridge, and back at the end"},
		{"bridge-uplink", func(f *Facts) {
			br, _ := f.link("br0")
			eth2(func(l *Link) { l.Master = br.Index })(f)
		}, "uplink: eth2 is already part of br0"},
		{"bridge-join", none, ""},
		{"bridge-join", func(f *Facts) { f.Links = f.Links[:0] }, "bridge: br0 does not exist on this host"},
	}
	for _, tt := range tests {
		f := testFacts()
		tt.change(&f)
		_, err := NewPlan(plannedSpecs()[tt.spec], nil, "test", f)
		got := ""
		if err != nil {
			_, got, _ = strings.Cut(err.Error(), ": ")
		}
		if got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.spec, got, tt.want)
		}
	}
}

func TestSubnetIsStableAndFree(t *testing.T) {
	spec := specs()["host-only"]
	n := newNames("test", spec)
	r, err := resolve(spec, n, testFacts())
	if err != nil {
		t.Fatal(err)
	}
	if !ranges.Overlaps(r.Subnet) || r.Subnet.Bits() != 24 {
		t.Errorf("subnet %s is no /24 of %s", r.Subnet, ranges)
	}
	f := testFacts()
	f.Routes = append(f.Routes, Route{Dst: r.Subnet, Link: "eth1", Table: 254})
	next, err := resolve(spec, n, f)
	if err != nil {
		t.Fatal(err)
	}
	if next.Subnet == r.Subnet {
		t.Errorf("subnet %s was chosen although it is routed elsewhere", next.Subnet)
	}
}

// TestNames: the kernel cuts longer names silently, so they have to fit, and
// two networks or ports never share one.
func TestNames(t *testing.T) {
	seen := map[string]string{}
	for i := range 2000 {
		spec := Spec{Name: strings.Repeat("x", 63), Dir: fmt.Sprint(i)}
		n := newNames("test", spec)
		for _, name := range []string{n.bridge, n.vlan, n.tap(testPort())} {
			if len(name) > 15 {
				t.Fatalf("%s has %d bytes", name, len(name))
			}
			if other := seen[name]; other != "" {
				t.Fatalf("%s stands for two networks: %s, %s", name, other, spec.Dir)
			}
			seen[name] = spec.Dir
		}
	}
}

func TestSpecDifference(t *testing.T) {
	a := specs()["nat"]
	b := a
	if d := a.Difference(b); d != "" {
		t.Errorf("equal definitions differ: %s", d)
	}
	b.MTU = 9000
	if d, want := a.Difference(b), "mtu (unset there, 9000 here)"; d != want {
		t.Errorf("got %q, want %q", d, want)
	}
}

func TestSpecSurvivesJSON(t *testing.T) {
	for name, spec := range plannedSpecs() {
		text, err := json.Marshal(spec)
		if err != nil {
			t.Fatal(err)
		}
		var back Spec
		if err := json.Unmarshal(text, &back); err != nil {
			t.Fatal(err)
		}
		if d := spec.Difference(back); d != "" {
			t.Errorf("%s changed on the way: %s", name, d)
		}
	}
}
