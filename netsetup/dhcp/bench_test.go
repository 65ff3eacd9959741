package dhcp

import (
	"net/netip"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// BenchmarkExchange is one new client's whole exchange of four messages, its
// lease written to the file.
func BenchmarkExchange(b *testing.B) {
	w := newWorld(b, func(o *Options, _ *Config) {
		o.Pool = Pool{Subnet: netip.MustParsePrefix("10.0.0.0/8"), First: ip("10.0.1.0"), Last: ip("10.255.255.0")}
	})
	n := 0
	for b.Loop() {
		n++
		m := mac{0x52, 0x54, 0, byte(n >> 16), byte(n >> 8), byte(n)}
		w.want(w.send(selecting(m, w.want(w.send(discover(m)), dhcpv4.MessageTypeOffer).ip())), dhcpv4.MessageTypeAck)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "exchanges/s")
}

// BenchmarkExhausted is a request that a full pool of 65 thousand refuses.
func BenchmarkExhausted(b *testing.B) {
	w := newWorld(b, func(o *Options, _ *Config) {
		o.Pool = Pool{Subnet: netip.MustParsePrefix("10.0.0.0/16"), First: ip("10.0.0.1"), Last: ip("10.0.255.254")}
		o.Path = ""
	})
	for i := range w.opts.Pool.size() {
		w.leases.bind(mac{2, 0, 0, byte(i >> 16), byte(i >> 8), byte(i)}, w.opts.Pool.at(i), "", w.cfg.LeaseTime)
	}
	frame := discover(client(1)).frame()
	for b.Loop() {
		if w.server.answer(frame) != nil {
			b.Fatal("an address from a full pool")
		}
	}
}
