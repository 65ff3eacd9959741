package guest

import (
	"encoding/binary"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestParseParameters(t *testing.T) {
	got := parseParameters("console=ttyS0 virtio_mmio.device=512@0xfeb00e00:12 virtio-mmio.device=512@0xfeb00c00:11 quiet " +
		"a.text=\"two words.really\" a.flag .x b. -- c.d=1\n")
	want := map[string]string{
		"virtio_mmio": "device=512@0xfeb00e00:12 device=512@0xfeb00c00:11",
		"a":           `text="two words.really" flag`,
		"b":           "",
	}
	if !maps.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func FuzzParseParameters(f *testing.F) {
	f.Add("a.b=c \"d.e f\" .")
	f.Fuzz(func(t *testing.T, line string) { parseParameters(line) })
}

// answer makes a server's answer.
func answer(t *testing.T, ip string, options ...dhcpv4.Option) *dhcpv4.DHCPv4 {
	t.Helper()
	p, err := dhcpv4.New(dhcpv4.WithYourIP(net.ParseIP(ip)))
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range options {
		p.UpdateOption(o)
	}
	return p
}

func TestLeaseLine(t *testing.T) {
	full := []dhcpv4.Option{
		dhcpv4.OptSubnetMask(net.CIDRMask(24, 32)),
		dhcpv4.OptRouter(net.IPv4(10, 70, 0, 1), net.IPv4(10, 70, 0, 2)),
		dhcpv4.OptDNS(net.IPv4(10, 70, 0, 1), net.IPv4(8, 8, 8, 8)),
	}
	for _, tt := range []struct {
		ack  *dhcpv4.DHCPv4
		want string
	}{
		{answer(t, "10.70.0.10", full...), "10.70.0.10/24 gw 10.70.0.1 dns 10.70.0.1,8.8.8.8"},
		{answer(t, "10.70.0.10", full[0]), "10.70.0.10/24"},
		{answer(t, "10.70.0.10", full[0], full[2]), "10.70.0.10/24 dns 10.70.0.1,8.8.8.8"},
		{answer(t, "192.168.1.5"), "192.168.1.5/24"},
		{answer(t, "0.0.0.0", full...), "no lease: the DHCP server gave the address 0.0.0.0"},
		{answer(t, "224.0.0.1", full...), "no lease: the DHCP server gave the address 224.0.0.1"},
		{answer(t, "10.70.0.10", dhcpv4.OptSubnetMask(net.IPMask{255, 0, 255, 0})), "no lease: the DHCP server gave the subnet mask ff00ff00"},
	} {
		l, err := newLease(tt.ack)
		attrs := netlink.LinkAttrs{Name: "eth0", HardwareAddr: net.HardwareAddr{0x52, 0x54, 0, 0xaa, 0xbb, 0xcc}}
		n := &nic{link: &netlink.Device{LinkAttrs: attrs}, lease: l}
		if got, want := n.line(err), "eth0 52:54:00:aa:bb:cc "+tt.want; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestLeaseOptions(t *testing.T) {
	l, err := newLease(answer(t, "10.70.0.10",
		dhcpv4.OptDomainName("vmrun.internal"), dhcpv4.OptHostName("web\nnameserver 6.6.6.6"),
		dhcpv4.Option{Code: dhcpv4.OptionInterfaceMTU, Value: dhcpv4.Uint16(1400)},
		dhcpv4.OptIPAddressLeaseTime(time.Hour)))
	if err != nil {
		t.Fatal(err)
	}
	if l.domain != "vmrun.internal" || l.hostname != "" || l.mtu != 1400 || l.renewIn != 30*time.Minute || l.expireIn != time.Hour {
		t.Errorf("%+v", l)
	}
	for _, tt := range []struct{ lease, t1, want time.Duration }{
		{0, 0, 0}, {0xffffffff * time.Second, 0, 0}, {time.Hour, time.Minute, time.Minute}, {time.Minute, time.Hour, 30 * time.Second},
	} {
		ack := answer(t, "10.70.0.10", dhcpv4.OptIPAddressLeaseTime(tt.lease))
		if tt.t1 != 0 {
			ack.UpdateOption(dhcpv4.OptRenewTimeValue(tt.t1))
		}
		if l, err := newLease(ack); err != nil || l.renewIn != tt.want {
			t.Errorf("lease of %v, T1 %v: renewed after %v, %v", tt.lease, tt.t1, l.renewIn, err)
		}
	}
}

func TestNameFiles(t *testing.T) {
	addr := netip.MustParseAddr
	leases := []lease{
		{address: netip.MustParsePrefix("10.70.0.10/24"), domain: "vmrun.internal", hostname: "web.vmrun.internal", dns: []netip.Addr{addr("10.70.0.1"), addr("10.70.0.2")}},
		{address: netip.MustParsePrefix("10.71.0.10/24"), dns: []netip.Addr{addr("10.70.0.1"), addr("10.71.0.1"), addr("10.71.0.2")}},
	}
	if got, want := resolvConf(leases), "search vmrun.internal\nnameserver 10.70.0.1\nnameserver 10.70.0.2\nnameserver 10.71.0.1\n"; got != want {
		t.Errorf("resolv.conf %q, want %q", got, want)
	}
	local := "127.0.0.1 localhost\n::1 localhost\n"
	if got, want := hosts(leases), local+"10.70.0.10 web.vmrun.internal web\n10.71.0.10 web\n"; got != want {
		t.Errorf("hosts %q, want %q", got, want)
	}
	if resolvConf(nil) != "" || hosts(nil) != local {
		t.Errorf("without a lease: %q, %q", resolvConf(nil), hosts(nil))
	}
}

// The names' files follow cards that come, change and go, in the cards' order;
// what the guest has written itself stays until they say something new.
func TestNameFilesFollow(t *testing.T) {
	var named []string
	f := &nameFiles{etc: t.TempDir(), setHostname: func(name []byte) error {
		named = append(named, string(name))
		return nil
	}}
	card := func(name string, order int, l lease) *nic {
		return &nic{link: &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: name}}, order: order, lease: l}
	}
	given := func(address, server, host string) lease {
		return lease{address: netip.MustParsePrefix(address), dns: []netip.Addr{netip.MustParseAddr(server)}, hostname: host}
	}
	holds := func(want string) {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(f.etc, "resolv.conf"))
		if err != nil || string(text) != want {
			t.Errorf("resolv.conf %q, %v, want %q", text, err, want)
		}
	}
	const first, second, other = "nameserver 10.70.0.1\n", "nameserver 10.71.0.1\n", "nameserver 10.72.0.1\n"
	eth0, eth1 := card("eth0", 0, given("10.70.0.10/24", "10.70.0.1", "web")), card("eth1", 1, given("10.71.0.10/24", "10.71.0.1", "web2"))
	for _, step := range []struct {
		do   func() error
		want string
	}{
		{func() error { return f.set(card("eth0", 0, lease{}), card("eth9", 9, lease{})) }, ""},
		{func() error { return f.set(eth1) }, second},
		{func() error { return f.set(eth0) }, first + second},
		{func() error { return f.set(card("eth1", 1, given("10.72.0.10/24", "10.72.0.1", "web3"))) }, first + other},
		{func() error { return f.drop("eth1") }, first},
		{func() error { return os.WriteFile(filepath.Join(f.etc, "resolv.conf"), []byte("own\n"), 0o600) }, "own\n"},
		{func() error { return f.set(eth0) }, "own\n"}, // a renewal
		{func() error { return f.set(eth1) }, first + second},
		{func() error { return f.set(card("eth0", 0, lease{})) }, second},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		holds(step.want)
	}
	if text, err := os.ReadFile(filepath.Join(f.etc, "hosts")); err != nil || !strings.HasSuffix(string(text), "\n10.71.0.10 web2\n") {
		t.Errorf("hosts %q, %v", text, err)
	}
	if len(named) != 1 || named[0] != "web2" {
		t.Errorf("the guest was named %v", named)
	}
}

func TestPowerPressed(t *testing.T) {
	event := func(kind, code uint16, value uint32) []byte {
		b := make([]byte, eventOffset, eventLen)
		b = binary.NativeEndian.AppendUint16(b, kind)
		b = binary.NativeEndian.AppendUint16(b, code)
		return binary.NativeEndian.AppendUint32(b, value)
	}
	press, release, sync, other := event(1, 116, 1), event(1, 116, 0), event(0, 0, 0), event(1, 30, 1)
	for _, tt := range []struct {
		events [][]byte
		want   bool
	}{
		{nil, false}, {[][]byte{press}, true}, {[][]byte{release, sync}, false},
		{[][]byte{other, sync, press}, true}, {[][]byte{press[:20]}, false},
	} {
		var all []byte
		for _, e := range tt.events {
			all = append(all, e...)
		}
		if got := powerPressed(all); got != tt.want {
			t.Errorf("powerPressed(%x) = %v", all, got)
		}
	}
}

func TestExitCode(t *testing.T) {
	for status, want := range map[unix.WaitStatus]int{0: 0, 7 << 8: 7, 15: 143, 9 | 0x80: 137} {
		if got := exitCode(status); got != want {
			t.Errorf("exitCode(%#x) = %d, want %d", status, got, want)
		}
	}
}

func TestLoadConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "guest.json")
	if err := os.WriteFile(path, []byte(`{"command":["a","b\n"]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := loadConfig(path)
	if err != nil || len(c.Command) != 2 || c.LeaseTimeout != defaultLeaseTimeout {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err := loadConfig(path + "x"); err == nil {
		t.Error("a missing file is no error")
	}
}

func TestIsInit(t *testing.T) {
	if IsInit() {
		t.Error("the test is a guest's init")
	}
}
