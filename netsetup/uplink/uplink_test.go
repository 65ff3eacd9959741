package uplink

import (
	"encoding/binary"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"
)

const eth0, eth1, bridge = 2, 3, 7 // indexes

// message is a route as the kernel would show it.
func message(family uint8, dst string, attrs ...[]byte) []byte {
	p := netip.MustParsePrefix(dst)
	b := encode(unix.RtMsg{Family: family, Dst_len: uint8(p.Bits()), Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST,
		Protocol: unix.RTPROT_STATIC, Flags: unix.RTNH_F_LINKDOWN | unix.RTNH_F_ONLINK})
	b = appendAttr(b, unix.RTA_DST, p.Addr().AsSlice())
	return append(b, slices.Concat(attrs...)...)
}

func attr(kind uint16, value []byte) []byte { return appendAttr(nil, kind, value) }

func attr32(kind uint16, v uint32) []byte {
	return attr(kind, binary.NativeEndian.AppendUint32(nil, v))
}

func gateway(a string) []byte { return attr(unix.RTA_GATEWAY, netip.MustParseAddr(a).AsSlice()) }

// hop is a struct rtnexthop with its gateway.
func hop(index uint32, weight uint8, via string) []byte {
	g := gateway(via)
	b := binary.NativeEndian.AppendUint16(nil, uint16(nexthopSize+len(g)))
	b = append(b, unix.RTNH_F_LINKDOWN, weight)
	return append(binary.NativeEndian.AppendUint32(b, index), g...)
}

// TestRoutesMove: a route through one interface becomes the same route through
// another one, and back, with what is not the interface's own left alone.
func TestRoutesMove(t *testing.T) {
	tests := []struct {
		name    string
		message []byte
		texts   []string
	}{
		{"gateway", message(unix.AF_INET, "10.0.0.0/8", attr32(unix.RTA_OIF, eth0), gateway("192.0.2.1"), attr32(unix.RTA_PRIORITY, 5)),
			[]string{"10.0.0.0/8 via 192.0.2.1 metric 5"}},
		{"unknown attribute", message(unix.AF_INET, "10.0.0.0/8", attr32(unix.RTA_OIF, eth0), attr(200, []byte("abcdefg"))), []string{"10.0.0.0/8"}},
		{"another interface's", message(unix.AF_INET, "10.0.0.0/8", attr32(unix.RTA_OIF, eth1)), nil},
		{"no interface's", message(unix.AF_INET, "10.0.0.0/8"), nil},
		{"shared", message(unix.AF_INET, "10.0.0.0/8", attr(unix.RTA_MULTIPATH, slices.Concat(hop(eth0, 1, "192.0.2.1"), hop(eth1, 0, "198.51.100.1")))),
			[]string{"10.0.0.0/8 via 192.0.2.1, 198.51.100.1"}},
		{"shared, IPv6", message(unix.AF_INET6, "2001:db8::/32",
			attr(unix.RTA_MULTIPATH, slices.Concat(hop(eth0, 0, "fe80::1"), hop(eth1, 0, "fe80::2"), hop(eth0, 3, "fe80::3")))),
			[]string{"2001:db8::/32 via fe80::1", "2001:db8::/32 via fe80::3"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			routes, err := newRoutes(tt.message, "eth0", eth0)
			if err != nil {
				t.Fatal(err)
			}
			var texts []string
			for _, r := range routes {
				texts = append(texts, r.String())
				checkMove(t, r)
			}
			if diff := cmp.Diff(tt.texts, texts); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// checkMove puts a route onto the bridge and reads it from there.
func checkMove(t *testing.T, r Route) {
	t.Helper()
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var journalled Route
	if err := json.Unmarshal(text, &journalled); err != nil {
		t.Fatal(err)
	}
	moved, err := journalled.on(bridge)
	if err != nil {
		t.Fatal(err)
	}
	p, err := parseRoute(moved)
	if err != nil {
		t.Fatal(err)
	}
	if p.through(eth0) || !p.through(bridge) {
		t.Errorf("%s leads to %d %v, want the bridge", r, p.oif, p.hops)
	}
	if p.Flags&unix.RTNH_F_LINKDOWN != 0 {
		t.Errorf("%s sets what only the kernel may", r)
	}
	back, err := newRoutes(moved, "vmu", bridge)
	if err != nil || len(back) != 1 || !back[0].Same(r) {
		t.Errorf("%s came back as %v, %v", r, back, err)
	}
}

func TestLater(t *testing.T) {
	s := State{
		Addresses: []Address{
			{Prefix: netip.MustParsePrefix("192.0.2.2/24"), Valid: 100, Preferred: 50},
			{Prefix: netip.MustParsePrefix("192.0.2.3/24"), Valid: 60, Preferred: 60},
			{Prefix: netip.MustParsePrefix("192.0.2.4/24"), Valid: Forever, Preferred: Forever},
		},
		Routes: []Route{{Text: "stays"}, {Text: "ends", Expires: 60}, {Text: "lasts", Expires: 61}},
	}
	want := State{
		Addresses: []Address{
			{Prefix: netip.MustParsePrefix("192.0.2.2/24"), Valid: 40, Preferred: 0},
			{Prefix: netip.MustParsePrefix("192.0.2.4/24"), Valid: Forever, Preferred: Forever},
		},
		Routes: []Route{{Text: "stays"}, {Text: "lasts", Expires: 1}},
	}
	equal := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	if diff := cmp.Diff(want, s.Later(time.Minute), equal, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestMentions: what a chain means for packets over the uplink and over the bridge.
func TestMentions(t *testing.T) {
	tests := []struct {
		name  string
		read  func(string) []block
		rules string
		want  int
	}{
		{"none", readSave, "*filter\n-A INPUT -i eth1 -j DROP\n-A INPUT -i eth01 -j DROP\nCOMMIT", 0},
		{"one", readSave, "*filter\n-A INPUT -i eth0 -j DROP\nCOMMIT", 1},
		{"wildcard", readSave, "*filter\n-A INPUT -o eth+ -j DROP\nCOMMIT", 1},
		{"everything", readSave, "*filter\n-A INPUT -i + -j DROP\nCOMMIT", 0},
		{"a comment", readSave, "*filter\n-A INPUT -m comment --comment \" -i eth0 \" -j DROP\nCOMMIT", 0},
		{"ours", readSave, "*filter\n-A FORWARD -i eth0 -j VMR-abc-T1\n-A VMR-abc-T1 -o eth0 -j RETURN\nCOMMIT", 0},
		{"twins", readSave, "*filter\n-A INPUT -i eth0 -j DROP\n-A INPUT -i vmu -j DROP\nCOMMIT", 0},
		{"twins in another order", readSave, "*filter\n-A INPUT -i eth0 -j DROP\n-A INPUT -i eth0 -p tcp -j ACCEPT\n-A INPUT -i vmu -p tcp -j ACCEPT\n-A INPUT -i vmu -j DROP\nCOMMIT", 2},
		{"twins in other chains", readSave, "*filter\n-A INPUT -i eth0 -j DROP\n-A OUTPUT -i vmu -j DROP\nCOMMIT", 1},
		{"inverted twins", readSave, "*filter\n-A INPUT ! -i eth0 -j DROP\n-A INPUT ! -i vmu -j DROP\nCOMMIT", 1},
		{"nft", readNft, "table inet t {\n\tchain c {\n\t\tiifname \"eth0\" drop\n\t}\n}", 1},
		{"nft for both", readNft, "table inet t {\n\tchain c {\n\t\tiifname { \"eth0\", \"vmu\" } drop\n\t}\n}", 0},
		{"nft wildcard", readNft, "table inet t {\n\tchain c {\n\t\toifname \"et*\" drop\n\t}\n}", 1},
		{"nft verdict map", readNft, "table inet t {\n\tchain c {\n\t\tiifname vmap { \"eth0\" : jump a, \"eth1\" : jump b }\n\t}\n}", 1},
		{"nft on the device", readNft, "table netdev t {\n\tchain c {\n\t\ttype filter hook ingress device \"eth0\" priority 0; policy accept;\n\t\tiifname \"eth0\" accept\n\t}\n}", 0},
		{"nft flowtable", readNft, "table inet t {\n\tflowtable f {\n\t\thook ingress priority 0\n\t\tdevices = { \"eth0\" }\n\t}\n}", 0},
		{"nft ours", readNft, "table inet vmrun_abc {\n\tset s {\n\t\ttype ifname\n\t}\n\n\tchain c {\n\t\tiifname \"eth0\" drop\n\t}\n}\ntable ip filter {\n\tchain INPUT {\n\t\ttcp dport 1 drop\n\t}\n\tchain VMR-a-T {\n\t\toifname \"eth0\" return\n\t}\n}", 0},
		{"set", readSets, "create s hash:net,iface\nadd s 10.0.0.0/8,eth0\nadd s 10.0.0.0/8,eth1", 1},
	}
	for _, tt := range tests {
		var got []string
		for _, b := range tt.read(tt.rules) {
			got = append(got, b.mentions("eth0", "vmu")...)
		}
		if len(got) != tt.want {
			t.Errorf("%s: %q, want %d", tt.name, got, tt.want)
		}
	}
}

func TestManager(t *testing.T) {
	tests := []struct{ path, text, want string }{
		{"NetworkManager/devices/2", "[device]\nmanaged=true\nconnection-uuid=1\n", "managed by NetworkManager"},
		{"NetworkManager/devices/2", "[device]\nmanaged=false\n", ""},
		{"NetworkManager/devices/3", "[device]\nmanaged=true\n", ""},
		{"systemd/netif/links/2", "# This is private data. Do not parse.\nADMIN_STATE=configured\nOPER_STATE=routable\n", "managed by systemd-networkd"},
		{"systemd/netif/links/2", "ADMIN_STATE=configuring\n", "managed by systemd-networkd"},
		{"systemd/netif/links/2", "ADMIN_STATE=unmanaged\n", ""},
		{"other", "", ""},
	}
	for _, tt := range tests {
		run := t.TempDir()
		path := filepath.Join(run, tt.path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(tt.text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := manager(run, "eth0", eth0); !strings.Contains(got, tt.want) || tt.want == "" && got != "" {
			t.Errorf("%s %q: %q, want %q", tt.path, tt.text, got, tt.want)
		}
	}
}

func TestLeaseTimes(t *testing.T) {
	seconds := func(s uint32) []byte { return binary.BigEndian.AppendUint32(nil, s) }
	for _, tt := range []struct {
		name       string
		lease, t1  []byte
		want       Lease
		wantsError bool
	}{
		{"none", nil, nil, Lease{}, true},
		{"half", seconds(100), nil, Lease{100 * time.Second, 50 * time.Second}, false},
		{"the server's", seconds(100), seconds(20), Lease{100 * time.Second, 20 * time.Second}, false},
		{"a T1 behind the end", seconds(100), seconds(200), Lease{100 * time.Second, 50 * time.Second}, false},
	} {
		ack, err := dhcpv4.New()
		if err != nil {
			t.Fatal(err)
		}
		if tt.lease != nil {
			ack.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionIPAddressLeaseTime, tt.lease))
		}
		if tt.t1 != nil {
			ack.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionRenewTimeValue, tt.t1))
		}
		got, err := newLease(ack)
		if (err != nil) != tt.wantsError || err == nil && got != tt.want {
			t.Errorf("%s: %v, %v; want %v", tt.name, got, err, tt.want)
		}
	}
}

// FuzzRoute: whatever a journal holds, a route is read or refused.
func FuzzRoute(f *testing.F) {
	f.Add(message(unix.AF_INET6, "2001:db8::/32", attr(unix.RTA_MULTIPATH, hop(eth0, 3, "fe80::1")), attr(unix.RTA_VIA, []byte{2, 0}), attr(unix.RTA_PREF, nil)))
	f.Add(message(unix.AF_INET, "10.0.0.0/8", attr32(unix.RTA_OIF, eth0), attr(unix.RTA_PRIORITY, []byte{1})))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := Route{Raw: b}
		r.gatewayless()
		r.fromKernel()
		r.on(bridge)
		r.placeholder(bridge)
		newRoutes(b, "eth0", eth0)
		State{Routes: []Route{r}}.Gateways()
	})
}
