package dns

import (
	"context"
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

// FuzzReply gives the server any message that the library takes for a query. It
// must not panic, and its reply can be sent.
func FuzzReply(f *testing.F) {
	for _, name := range []string{"web", "web.vmrun.internal", "vmrun.internal", "10.0.1.127.in-addr.arpa", "x.1.127.in-addr.arpa",
		"in-addr.arpa", ".in-addr.arpa", "example.com", ".", `a\.b.vmrun.internal`, `\000.1.127.in-addr.arpa`} {
		for _, kind := range []uint16{dns.TypeA, dns.TypePTR, dns.TypeSOA, dns.TypeANY} {
			if m, err := question(name, kind).SetEdns0(1232, true).Pack(); err == nil {
				f.Add(m)
			}
		}
	}
	f.Add([]byte{})
	f.Add(make([]byte, 12))
	f.Add([]byte{0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0}) // a header that promises a question
	s, err := NewServer(Config{Domain: "vmrun.internal", Subnet: testSubnet, Lookup: lookup, Name: nameOf, Upstreams: func() []netip.AddrPort { return nil }})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m := new(dns.Msg)
		if m.Unpack(data) != nil {
			return
		}
		r := s.reply(context.Background(), m, false)
		r.Truncate(dns.MinMsgSize)
		out, err := r.Pack()
		if err != nil || len(out) > dns.MinMsgSize {
			t.Errorf("reply of %d bytes, %v, to %v", len(out), err, m)
		}
	})
}
