package dhcp

import (
	"net/netip"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"pgregory.net/rapid"
)

// holding is what a client may believe after the server's last word.
type holding struct {
	ip    netip.Addr
	until time.Time
}

// TestOneAddressOneMachine lets clients, keepers and time do anything in any
// order. No two machines hold one address at a time, and nobody holds one that
// is outside the pool or another's reservation.
func TestOneAddressOneMachine(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		w := newWorld(t, func(o *Options, _ *Config) { o.Pool.Last = ip("10.70.0.103") })
		held := make(map[mac]holding)
		ports := make(map[mac]netip.Addr)
		machine := rapid.Custom(func(r *rapid.T) mac { return client(rapid.ByteRange(1, 7).Draw(r, "client")) })
		addr := rapid.SampledFrom([]netip.Addr{{}, ip("10.70.0.10"), ip("10.70.0.100"), ip("10.70.0.101"), ip("10.70.0.102"),
			ip("10.70.0.103"), ip("10.70.0.104"), ip("10.70.0.255"), serverAddr, ip("192.168.0.1")})
		kind := rapid.SampledFrom([]dhcpv4.MessageType{dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeRequest,
			dhcpv4.MessageTypeRelease, dhcpv4.MessageTypeDecline, dhcpv4.MessageTypeInform})
		r.Repeat(map[string]func(*rapid.T){
			"message": func(r *rapid.T) {
				m := machine.Draw(r, "from")
				p := newPacket(m, kind.Draw(r, "kind"))
				wanted, ciaddr := addr.Draw(r, "wanted"), addr.Draw(r, "ciaddr")
				if wanted.IsValid() {
					p.UpdateOption(dhcpv4.OptRequestedIPAddress(wanted.AsSlice()))
				}
				if ciaddr.IsValid() {
					p = p.from(ciaddr.String())
				}
				if rapid.Bool().Draw(r, "named server") {
					p.UpdateOption(dhcpv4.OptServerIdentifier(serverAddr.AsSlice()))
				}
				a := w.send(p)
				ends := p.MessageType() == dhcpv4.MessageTypeRelease || p.MessageType() == dhcpv4.MessageTypeDecline
				if ends && (held[m].ip == ciaddr || held[m].ip == wanted) || a != nil && a.MessageType() == dhcpv4.MessageTypeNak {
					delete(held, m)
				}
				if a != nil && a.MessageType() == dhcpv4.MessageTypeAck && a.ip().IsValid() {
					held[m] = holding{a.ip(), w.clock.now().Add(w.cfg.LeaseTime)}
				}
			},
			"reserve": func(r *rapid.T) {
				m := machine.Draw(r, "port")
				if got, err := w.leases.Reserve(t.Context(), Claim{MAC: m[:], IP: addr.Draw(r, "fixed")}); err == nil {
					if held[m].ip != got {
						delete(held, m) // a new machine with an old MAC
					}
					ports[m] = got
				}
			},
			"leave": func(r *rapid.T) {
				m := machine.Draw(r, "port")
				if _, ok := ports[m]; ok {
					w.leases.Release(m[:])
					delete(ports, m)
					delete(held, m)
				}
			},
			"new keeper": func(r *rapid.T) {
				if err := w.leases.store.file.Close(); err != nil { // all that a SIGKILL does
					r.Fatal(err)
				}
				w.open()
				for m, ip := range ports { // adoption
					if got, err := w.leases.Reserve(t.Context(), Claim{MAC: m[:], IP: ip}); err != nil || got != ip {
						r.Fatalf("adopting %s: %s, %v, want %s", m, got, err, ip)
					}
				}
			},
			"time": func(r *rapid.T) {
				w.clock.advance(time.Duration(rapid.IntRange(1, 40).Draw(r, "minutes")) * time.Minute)
			},
			"": func(r *rapid.T) { checkHoldings(r, w, held, ports) },
		})
	})
}

func checkHoldings(r *rapid.T, w *world, held map[mac]holding, ports map[mac]netip.Addr) {
	owner := make(map[netip.Addr]mac)
	for m, ip := range ports {
		if other, taken := owner[ip]; taken {
			r.Fatalf("%s is reserved for %s and %s", ip, m, other)
		}
		owner[ip] = m
	}
	for m, h := range held {
		if !h.until.After(w.clock.now()) {
			continue
		}
		port, isPort := ports[m]
		if isPort && h.ip != port || !isPort && !w.opts.Pool.has(h.ip) {
			r.Fatalf("%s holds %s; reserved: %s", m, h.ip, port)
		}
		if other, taken := owner[h.ip]; taken && other != m {
			r.Fatalf("%s and %s hold %s", m, other, h.ip)
		}
		owner[h.ip] = m
	}
}
