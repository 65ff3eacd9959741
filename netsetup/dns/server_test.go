package dns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

func TestOwnNames(t *testing.T) {
	f := start(t, resolver(t, says("elsewhere")))
	const (
		ours    = "vmrun.internal. 2 SOA"
		reverse = "1.127.in-addr.arpa. 2 SOA"
	)
	tests := []struct {
		name string
		kind uint16
		want string // rcode, answers, authority
	}{
		{"web.vmrun.internal", dns.TypeA, "NOERROR [web.vmrun.internal. 30 A 127.1.0.10] []"},
		{"WeB.vmRUN.internal", dns.TypeA, "NOERROR [WeB.vmRUN.internal. 30 A 127.1.0.10] []"},
		{"web", dns.TypeA, "NOERROR [web. 30 A 127.1.0.10] []"},
		{"db", dns.TypeANY, "NOERROR [db. 30 A 127.1.0.11 db. 30 A 127.1.0.12] []"},
		{"web.vmrun.internal", dns.TypeAAAA, "NOERROR [] [" + ours + "]"},
		{"web.vmrun.internal", dns.TypeMX, "NOERROR [] [" + ours + "]"},
		{"web", dns.TypeAAAA, "NOERROR [] []"},
		{"mail.vmrun.internal", dns.TypeA, "NXDOMAIN [] [" + ours + "]"},
		{"www.web.vmrun.internal", dns.TypeA, "NXDOMAIN [] [" + ours + "]"},
		{"vmrun.internal", dns.TypeA, "NOERROR [] [" + ours + "]"},
		{"vmrun.internal", dns.TypeSOA, "NOERROR [" + ours + "] []"},
		{"notvmrun.internal", dns.TypeTXT, "NOERROR [elsewhere] []"},
		{"internal", dns.TypeTXT, "NOERROR [elsewhere] []"},
		{"mail", dns.TypeTXT, "NOERROR [elsewhere] []"},
		{".", dns.TypeNS, "NOERROR [elsewhere] []"},
		{"10.0.1.127.in-addr.arpa", dns.TypePTR, "NOERROR [10.0.1.127.in-addr.arpa. 30 PTR web.vmrun.internal.] []"},
		{"10.0.1.127.IN-addr.ARPA", dns.TypePTR, "NOERROR [10.0.1.127.IN-addr.ARPA. 30 PTR web.vmrun.internal.] []"},
		{"10.0.1.127.in-addr.arpa", dns.TypeTXT, "NOERROR [] [" + reverse + "]"},
		{"99.0.1.127.in-addr.arpa", dns.TypePTR, "NXDOMAIN [] [" + reverse + "]"},
		{"x.10.0.1.127.in-addr.arpa", dns.TypePTR, "NXDOMAIN [] [" + reverse + "]"},
		{"x.0.1.127.in-addr.arpa", dns.TypePTR, "NXDOMAIN [] [" + reverse + "]"},
		{"010.0.1.127.in-addr.arpa", dns.TypePTR, "NXDOMAIN [] [" + reverse + "]"},
		{"0.1.127.in-addr.arpa", dns.TypePTR, "NOERROR [] [" + reverse + "]"},
		{"1.127.in-addr.arpa", dns.TypeSOA, "NOERROR [" + reverse + "] []"},
		{"127.in-addr.arpa", dns.TypeTXT, "NOERROR [elsewhere] []"},
		{"10.0.2.127.in-addr.arpa", dns.TypeTXT, "NOERROR [elsewhere] []"},
		{"in-addr.arpa", dns.TypeTXT, "NOERROR [elsewhere] []"},
		{"1.0.0.0.ip6.arpa", dns.TypeTXT, "NOERROR [elsewhere] []"},
	}
	for _, tt := range tests {
		for _, network := range []string{"udp", "tcp"} {
			t.Run(fmt.Sprintf("%s/%s/%s", tt.name, dns.TypeToString[tt.kind], network), func(t *testing.T) {
				m := question(tt.name, tt.kind)
				r := f.ask(network, m)
				got := fmt.Sprintf("%s %v %v", dns.RcodeToString[r.Rcode], show(r.Answer), show(r.Ns))
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Error(diff)
				}
				if r.Id != m.Id || r.Authoritative == strings.Contains(got, "elsewhere") {
					t.Errorf("header %v", r.MsgHdr)
				}
			})
		}
	}
}

// show is records for people.
func show(records []dns.RR) []string {
	texts := []string{}
	for _, r := range records {
		h := r.Header()
		text := fmt.Sprintf("%s %d %s", h.Name, h.Ttl, dns.TypeToString[h.Rrtype])
		switch r := r.(type) {
		case *dns.A:
			text += " " + r.A.String()
		case *dns.PTR:
			text += " " + r.Ptr
		case *dns.TXT:
			text = r.Txt[0]
		}
		texts = append(texts, text)
	}
	return texts
}

func TestReverseZones(t *testing.T) {
	tests := []struct {
		subnet, name, want string // zone; "": not ours
	}{
		{"10.70.0.0/24", "5.0.70.10.in-addr.arpa.", "0.70.10.in-addr.arpa."},
		{"10.70.0.0/24", "70.10.in-addr.arpa.", ""},
		{"10.70.0.0/24", "5.1.70.10.in-addr.arpa.", ""},
		{"10.70.16.0/20", "5.17.70.10.in-addr.arpa.", "17.70.10.in-addr.arpa."},
		{"10.70.16.0/20", "17.70.10.in-addr.arpa.", "17.70.10.in-addr.arpa."},
		{"10.70.16.0/20", "5.32.70.10.in-addr.arpa.", ""},
		{"10.70.0.0/26", "5.0.70.10.in-addr.arpa.", "0.70.10.in-addr.arpa."},
		{"10.70.0.0/26", "65.0.70.10.in-addr.arpa.", ""},
		{"10.70.0.0/26", "0.70.10.in-addr.arpa.", ""},
		{"10.0.0.0/8", "10.in-addr.arpa.", "10.in-addr.arpa."},
		{"10.0.0.0/8", "in-addr.arpa.", ""},
	}
	for _, tt := range tests {
		s, err := NewServer(Config{Domain: "vmrun.internal.", Subnet: netip.MustParsePrefix(tt.subnet), Lookup: lookup, Name: nameOf})
		if err != nil {
			t.Fatal(err)
		}
		v, ok := s.own(dns.Question{Name: tt.name, Qtype: dns.TypePTR, Qclass: dns.ClassINET})
		if ok != (tt.want != "") || v.zone != tt.want {
			t.Errorf("%s in %s: zone %q, ours %v, want %q", tt.name, tt.subnet, v.zone, ok, tt.want)
		}
	}
}

func TestRefusals(t *testing.T) {
	f := start(t, resolver(t, says("elsewhere")))
	with := func(change func(m *dns.Msg)) *dns.Msg {
		m := question("example.com", dns.TypeTXT)
		change(m)
		return m
	}
	for name, tt := range map[string]struct {
		query *dns.Msg
		want  int
	}{
		"other class":    {with(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), dns.RcodeRefused},
		"zone transfer":  {with(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAXFR }), dns.RcodeRefused},
		"two questions":  {with(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), dns.RcodeFormatError},
		"no question":    {with(func(m *dns.Msg) { m.Question = nil }), dns.RcodeFormatError},
		"notify":         {with(func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }), dns.RcodeNotImplemented},
		"update":         {with(func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }), dns.RcodeNotImplemented},
		"unknown EDNS":   {with(func(m *dns.Msg) { m.SetEdns0(1232, false).IsEdns0().SetVersion(1) }), dns.RcodeBadVers},
		"all in order":   {with(func(*dns.Msg) {}), dns.RcodeSuccess},
		"known EDNS too": {with(func(m *dns.Msg) { m.SetEdns0(1232, true) }), dns.RcodeSuccess},
	} {
		if r := f.ask("udp", tt.query); r.Rcode != tt.want {
			t.Errorf("%s: %s, want %s", name, dns.RcodeToString[r.Rcode], dns.RcodeToString[tt.want])
		}
	}
}

func TestStrangersHearNothing(t *testing.T) {
	f := start(t)
	stranger, err := net.Dial("udp", f.address) // from 127.0.0.1
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	query, err := question("web", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range [][]byte{query, query[:14]} {
		if _, err := stranger.Write(m); err != nil {
			t.Fatal(err)
		}
	}
	f.ask("udp", question("web", dns.TypeA)) // comes after the stranger's
	if err := stranger.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := stranger.Read(make([]byte, 512)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a stranger got %d bytes, %v", n, err)
	}
	if r, err := f.askFrom("tcp", "127.0.0.1", question("web", dns.TypeA)); err == nil {
		t.Errorf("a stranger got %v", r)
	}
}

// TestMalformed sends what is no query; the server lives and says nothing more
// than that it is malformed.
func TestMalformed(t *testing.T) {
	f := start(t)
	client, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP("127.1.0.5")}, net.UDPAddrFromAddrPort(addrPort(f.packet.LocalAddr())))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	query, err := question("web.vmrun.internal", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	for n := range query {
		if _, err := client.Write(query[:n]); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range [][]byte{make([]byte, 12), make([]byte, 1200), []byte(strings.Repeat("\xff", 512)), append(query[:12:12], 0xc0, 12, 0, 1, 0, 1)} {
		if _, err := client.Write(m); err != nil {
			t.Fatal(err)
		}
	}
	if r := f.ask("udp", question("web", dns.TypeA)); len(r.Answer) != 1 {
		t.Errorf("answer %v", r)
	}
}

func TestNewServerRefuses(t *testing.T) {
	for _, c := range []Config{
		{Subnet: testSubnet},
		{Subnet: testSubnet, Domain: "a..b"},
		{Domain: "vmrun.internal"},
		{Domain: "vmrun.internal", Subnet: netip.MustParsePrefix("fd00::/64")},
	} {
		if _, err := NewServer(c); err == nil {
			t.Errorf("config %+v accepted", c)
		}
	}
}

func TestServeEndsWithItsSocket(t *testing.T) {
	s, err := NewServer(Config{Domain: "vmrun.internal", Subnet: testSubnet, Lookup: lookup, Name: nameOf})
	if err != nil {
		t.Fatal(err)
	}
	packet, listener := sockets(t, "127.1.0.1")
	packet.Close()
	if err := s.Serve(t.Context(), packet, listener); err == nil {
		t.Error("no error with a closed socket")
	}
	if _, err := listener.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("listener is left open: %v", err)
	}
}
