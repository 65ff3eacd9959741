package dhcp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestReserveIsStable(t *testing.T) {
	w := newWorld(t)
	first := w.reserve(client(1), "", "web")
	m := client(1)
	if want := w.opts.Pool.Preferred(m[:]); first != want {
		t.Errorf("got %s, preferred %s", first, want)
	}
	w.leases.Release(m[:])
	w.leases.Release(m[:])
	if again := w.reserve(m, "", "web"); again != first {
		t.Errorf("got %s, had %s", again, first)
	}
	w.leases.Release(m[:])
	if fixed := w.reserve(m, "10.70.0.20", "web"); fixed != ip("10.70.0.20") {
		t.Errorf("fixed 10.70.0.20, got %s", fixed)
	}
	w.leases.Release(m[:])
	if back := w.reserve(m, "", "web"); !w.opts.Pool.has(back) {
		t.Errorf("no longer fixed, got %s outside the pool", back)
	}
}

func TestReserveRefuses(t *testing.T) {
	tests := []struct {
		name, want string
		claim      Claim
	}{
		{"fixed address of a port", "in use by web (52:54:00:00:00:01)", Claim{MAC: mac2(9), IP: ip("10.70.0.10")}},
		{"fixed address of a stranger", "in use by 52:54:00:00:00:02", Claim{MAC: mac2(9), IP: ip("10.70.0.105")}},
		{"outside the subnet", "not for a guest of 10.70.0.0/24", Claim{MAC: mac2(9), IP: ip("10.71.0.1")}},
		{"network's address", "not for a guest", Claim{MAC: mac2(9), IP: ip("10.70.0.0")}},
		{"broadcast address", "not for a guest", Claim{MAC: mac2(9), IP: ip("10.70.0.255")}},
		{"host's address", "not for a guest", Claim{MAC: mac2(9), IP: serverAddr}},
		{"IPv6", "not for a guest", Claim{MAC: mac2(9), IP: netip.IPv6Loopback()}},
		{"MAC twice", "already on the network as web", Claim{MAC: mac2(1)}},
		{"no MAC", "not an Ethernet address", Claim{}},
		{"group MAC", "not the address of one machine", Claim{MAC: broadcastMAC[:]}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.reserve(client(1), "10.70.0.10", "web")
			w.leases.bind(client(2), ip("10.70.0.105"), "", time.Hour)
			before := w.leases.List()
			got, err := w.leases.Reserve(t.Context(), tt.claim)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %s, %v, want %q", got, err, tt.want)
			}
			if diff := cmp.Diff(before, w.leases.List(), compareAddrs); diff != "" {
				t.Errorf("the table changed:\n%s", diff)
			}
		})
	}
}

func mac2(n byte) net.HardwareAddr { m := client(n); return m[:] }

var compareAddrs = cmpopts.EquateComparable(netip.Addr{})

func TestReserveTakesRememberedOnly(t *testing.T) {
	w := newWorld(t)
	addr := w.lease(client(1))
	if _, err := w.leases.Reserve(t.Context(), Claim{MAC: mac2(2), IP: addr}); err == nil {
		t.Fatal("took a bound address")
	}
	w.clock.advance(2 * time.Hour)
	w.reserve(client(2), addr.String(), "")
	if got := w.lease(client(1)); got == addr {
		t.Error("the reserved address was given away")
	}
}

func TestReserveExhausted(t *testing.T) {
	w := newWorld(t)
	for n := range byte(10) {
		w.reserve(client(n+1), "", "")
		w.clock.advance(time.Minute)
	}
	_, err := w.leases.Reserve(t.Context(), Claim{MAC: mac2(20)})
	if err == nil || !strings.Contains(err.Error(), "no address is free from 10.70.0.100 to 10.70.0.109") {
		t.Errorf("error %v", err)
	}
	// The longest unused one goes first, whatever the order of leaving.
	list := w.leases.List()
	w.leases.Release(mac2(4))
	w.clock.advance(time.Minute)
	w.leases.Release(mac2(3))
	got := w.reserve(client(20), "", "")
	for _, e := range list {
		if e.MAC == client(4).String() && e.IP != got {
			t.Errorf("got %s, the longest unused is %s", got, e.IP)
		}
	}
}

// TestFloodKeepsRemembered has a guest ask for address after address without
// taking one: it costs others none of their remembered addresses.
func TestFloodKeepsRemembered(t *testing.T) {
	w := newWorld(t)
	addr := w.reserve(client(1), "", "web")
	w.leases.Release(mac2(1))
	for n := range byte(100) {
		w.send(discover(client(n + 100)))
		w.clock.advance(offerTime / 5)
	}
	if got := w.reserve(client(1), "", "web"); got != addr {
		t.Errorf("got %s, had %s", got, addr)
	}
}

func TestNames(t *testing.T) {
	w := newWorld(t)
	w.reserve(client(1), "10.70.0.11", "Web")
	w.reserve(client(2), "10.70.0.10", "web")
	w.reserve(client(3), "10.70.0.12", "")
	guest := discover(client(4))
	guest.Options.Update(optHostname("db"))
	w.send(guest)
	want := []netip.Addr{ip("10.70.0.10"), ip("10.70.0.11")}
	if diff := cmp.Diff(want, w.leases.Lookup("wEB"), compareAddrs); diff != "" {
		t.Error(diff)
	}
	if got := w.leases.Lookup("db"); got != nil {
		t.Errorf("a guest named itself: %v", got)
	}
	if got := w.leases.Lookup(""); got != nil {
		t.Errorf("no name has %v", got)
	}
	if got := w.leases.Name(ip("10.70.0.11")); got != "Web" {
		t.Errorf("name %q", got)
	}
	w.leases.Release(mac2(1))
	w.leases.Release(mac2(2))
	if got, name := w.leases.Lookup("web"), w.leases.Name(ip("10.70.0.11")); got != nil || name != "" {
		t.Errorf("released, but %v, %q", got, name)
	}
}

func TestReserveProbes(t *testing.T) {
	taken := make(map[netip.Addr]net.HardwareAddr)
	stranger := net.HardwareAddr{2, 2, 2, 2, 2, 2}
	fault := error(nil)
	w := newWorld(t, func(o *Options, _ *Config) {
		o.Probe = func(_ context.Context, addr netip.Addr, _ net.HardwareAddr) (net.HardwareAddr, error) {
			return taken[addr], fault
		}
	})
	m := client(1)
	taken[w.opts.Pool.Preferred(m[:])] = stranger
	got := w.reserve(m, "", "web")
	if got == w.opts.Pool.Preferred(m[:]) || w.leases.Lookup("web")[0] != got {
		t.Errorf("reserved %s, named %v", got, w.leases.Lookup("web"))
	}
	taken[ip("10.70.0.20")] = stranger
	_, err := w.leases.Reserve(t.Context(), Claim{MAC: mac2(2), IP: ip("10.70.0.20"), Hostname: "db"})
	if err == nil || !strings.Contains(err.Error(), stranger.String()) || w.leases.Lookup("db") != nil {
		t.Errorf("error %v, named %v", err, w.leases.Lookup("db"))
	}
	if _, err := w.leases.Reserve(t.Context(), Claim{MAC: mac2(2), IP: ip("10.70.0.20"), Hostname: "db", Held: true}); err != nil {
		t.Errorf("a machine that has its address: %v", err)
	}
	w.leases.Release(mac2(2))
	fault = errors.New("link is down")
	if _, err := w.leases.Reserve(t.Context(), Claim{MAC: mac2(3)}); !errors.Is(err, fault) {
		t.Errorf("error %v", err)
	}
	fault = nil
	for n := uint32(0); n < w.opts.Pool.size(); n++ {
		taken[w.opts.Pool.at(n)] = stranger
	}
	if _, err := w.leases.Reserve(t.Context(), Claim{MAC: mac2(4)}); err == nil || !strings.Contains(err.Error(), "no address is free") {
		t.Errorf("error %v", err)
	}
}

func TestPoolCheck(t *testing.T) {
	pool := func(subnet, first, last string) Pool {
		return Pool{Subnet: netip.MustParsePrefix(subnet), First: ip(first), Last: ip(last)}
	}
	for _, p := range []Pool{
		{},
		pool("10.0.0.0/31", "10.0.0.0", "10.0.0.1"),
		pool("10.0.0.0/7", "10.0.0.1", "10.0.0.2"),
		pool("fd00::/64", "fd00::1", "fd00::2"),
		pool("10.0.0.1/24", "10.0.0.1", "10.0.0.2"),
		pool("10.0.0.0/24", "10.0.0.9", "10.0.0.2"),
		pool("10.0.0.0/24", "10.0.0.9", "10.0.1.2"),
		pool("10.0.0.0/24", "10.0.0.0", "10.0.0.2"),
		pool("10.0.0.0/24", "10.0.0.1", "10.0.0.255"),
	} {
		if _, err := OpenLeases(Options{Pool: p}); err == nil {
			t.Errorf("pool %+v accepted", p)
		}
	}
	small := pool("10.0.0.0/30", "10.0.0.1", "10.0.0.2")
	small.Exclude = []netip.Addr{ip("10.0.0.1"), ip("10.0.0.2")}
	l, err := OpenLeases(Options{Pool: small})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := l.Reserve(t.Context(), Claim{MAC: mac2(1)}); err == nil {
		t.Errorf("got %s of an excluded pool", got)
	}
}
