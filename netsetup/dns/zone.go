package dns

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

// How long clients may keep our answers, in seconds. A machine that isn't there
// may be in a moment.
const (
	ttl         = 30
	negativeTTL = 2
)

// verdict is what we know about a question of our own zones.
type verdict struct {
	rcode  int
	answer []dns.RR
	zone   string // for negative answers; "": they are not kept
}

// own answers a question for which the network itself is responsible: its
// domain, the bare names of its machines, and the reverse names of its subnet.
func (s *Server) own(q dns.Question) (v verdict, ok bool) {
	name := dns.CanonicalName(q.Name)
	switch {
	case name == s.domain:
		return s.apex(q), true
	case dns.IsSubDomain(s.domain, name):
		v, ok := s.machine(q, strings.TrimSuffix(name, "."+s.domain))
		v.zone = s.domain
		if !ok {
			v.rcode = dns.RcodeNameError
		}
		return v, true
	case dns.CountLabel(name) == 1:
		return s.machine(q, strings.TrimSuffix(name, "."))
	}
	if labels, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		return s.reverse(q, strings.Split(labels, "."))
	}
	return verdict{}, false
}

func (s *Server) apex(q dns.Question) verdict {
	v := verdict{zone: s.domain}
	if q.Qtype == dns.TypeSOA || q.Qtype == dns.TypeANY {
		v.answer = []dns.RR{s.soa(q.Name)}
	}
	return v
}

// machine is not ok if there is no machine of that name.
func (s *Server) machine(q dns.Question, name string) (v verdict, ok bool) {
	ips := s.cfg.Lookup(name)
	if len(ips) == 0 {
		return v, false
	}
	if q.Qtype == dns.TypeA || q.Qtype == dns.TypeANY {
		for _, ip := range ips {
			v.answer = append(v.answer, &dns.A{Hdr: header(q.Name, dns.TypeA), A: ip.AsSlice()})
		}
	}
	return v, true
}

// reverse answers for a name below in-addr.arpa, lowest octet first. It is not
// ok if the name is that of more than our subnet, or of another.
func (s *Server) reverse(q dns.Question, labels []string) (v verdict, ok bool) {
	var octets [4]byte
	known := 0
	for known < len(octets) && known < len(labels) {
		label := labels[len(labels)-1-known]
		n, err := strconv.ParseUint(label, 10, 8)
		if err != nil || label != strconv.FormatUint(n, 10) {
			break
		}
		octets[known] = byte(n)
		known++
	}
	ip := netip.AddrFrom4(octets)
	if !s.cfg.Subnet.Contains(ip) || known*8 < s.cfg.Subnet.Bits() {
		return v, false
	}
	// The zone ends at an octet, at the third if the subnet is narrower.
	cut := min(3, (s.cfg.Subnet.Bits()+7)/8)
	v.zone = strings.Join(labels[len(labels)-cut:], ".") + ".in-addr.arpa."
	name := ""
	if known == len(octets) && len(labels) == known {
		name = s.cfg.Name(ip)
	}
	switch {
	case name != "" && (q.Qtype == dns.TypePTR || q.Qtype == dns.TypeANY):
		v.answer = []dns.RR{&dns.PTR{Hdr: header(q.Name, dns.TypePTR), Ptr: dns.CanonicalName(name) + s.domain}}
	case len(labels) == cut && q.Qtype == dns.TypeSOA:
		v.answer = []dns.RR{s.soa(q.Name)}
	case name == "" && (known == len(octets) || len(labels) > known):
		v.rcode = dns.RcodeNameError
	}
	return v, true
}

// authoritative is the reply that says what a verdict says.
func (s *Server) authoritative(query *dns.Msg, v verdict) *dns.Msg {
	m := new(dns.Msg).SetRcode(query, v.rcode)
	m.Authoritative, m.RecursionAvailable = true, true
	m.Answer = v.answer
	if len(v.answer) == 0 && v.zone != "" {
		m.Ns = []dns.RR{s.soa(v.zone)}
	}
	withEDNS(m, query)
	return m
}

// soa tells clients how long to keep a negative answer (RFC 2308, section 5).
func (s *Server) soa(zone string) dns.RR {
	h := header(zone, dns.TypeSOA)
	h.Ttl = negativeTTL
	return &dns.SOA{Hdr: h, Ns: s.domain, Mbox: "hostmaster." + s.domain, Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: negativeTTL}
}

func header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}
