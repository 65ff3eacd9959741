package dns

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/miekg/dns"
)

func TestForward(t *testing.T) {
	good := resolver(t, says("good"))
	other := resolver(t, says("other"))
	refusing, failing := resolver(t, fails(dns.RcodeRefused)), resolver(t, fails(dns.RcodeServerFailure))
	absent := resolver(t, fails(dns.RcodeNameError))
	liar := resolver(t, func(w dns.ResponseWriter, m *dns.Msg) {
		m.Question[0].Name = "evil.example."
		says("evil")(w, m)
	})
	garbled := resolver(t, func(w dns.ResponseWriter, m *dns.Msg) {
		_, _ = w.Write([]byte{byte(m.Id >> 8), byte(m.Id), 0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0})
	})
	self := netip.MustParseAddrPort("127.1.0.1:53")
	type servers = []netip.AddrPort
	for name, tt := range map[string]struct {
		resolvers servers
		want      string
		log       int
	}{
		"first of two":      {servers{good, other}, "NOERROR [good]", 0},
		"first is dead":     {servers{dead(t), good}, "NOERROR [good]", 0},
		"first is mute":     {servers{mute(t), good}, "NOERROR [good]", 0},
		"first refuses":     {servers{refusing, good}, "NOERROR [good]", 0},
		"first fails":       {servers{failing, good}, "NOERROR [good]", 0},
		"first lies":        {servers{liar, good}, "NOERROR [good]", 0},
		"first is garbled":  {servers{garbled, good}, "NOERROR [good]", 0},
		"no such name":      {servers{absent, good}, "NXDOMAIN []", 0},
		"all refuse":        {servers{refusing, refusing}, "REFUSED []", 0},
		"all are dead":      {servers{dead(t), dead(t)}, "SERVFAIL []", 1},
		"none":              {nil, "SERVFAIL []", 1},
		"ourselves":         {servers{self}, "SERVFAIL []", 1},
		"ourselves, mapped": {servers{netip.AddrPortFrom(netip.AddrFrom16(self.Addr().As16()), 53)}, "SERVFAIL []", 1},
		"not only us":       {servers{self, good}, "NOERROR [good]", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := startWith(t, func(s *Server) { s.try = time.Second }, tt.resolvers...)
			for _, network := range []string{"udp", "udp", "tcp"} {
				m := question("example.com", dns.TypeTXT)
				r := f.ask(network, m)
				if got := fmt.Sprintf("%s %v", dns.RcodeToString[r.Rcode], show(r.Answer)); got != tt.want || r.Id != m.Id {
					t.Errorf("%s: got %s, id %d, want %s, id %d", network, got, r.Id, tt.want, m.Id)
				}
			}
			if n := f.log.count("no resolver"); n != tt.log {
				t.Errorf("%d lines in the log, want %d", n, tt.log)
			}
		})
	}
}

// TestOwnSocketIsNoResolver has the host's resolv.conf name the very socket.
func TestOwnSocketIsNoResolver(t *testing.T) {
	own := make(chan netip.AddrPort, 1)
	f := startWith(t, func(s *Server) {
		s.cfg.Address = netip.Addr{}
		s.cfg.Upstreams = func() []netip.AddrPort { return []netip.AddrPort{<-own} }
	})
	own <- addrPort(f.packet.LocalAddr())
	r := f.ask("udp", question("example.com", dns.TypeA))
	if r.Rcode != dns.RcodeServerFailure || f.log.count("resolvers=0") != 1 {
		t.Errorf("answer %v; asked itself", r)
	}
}

// TestSticksToWhoAnswers doesn't wait for a mute resolver twice.
func TestSticksToWhoAnswers(t *testing.T) {
	var mu sync.Mutex
	asked := 0
	slow := resolver(t, func(dns.ResponseWriter, *dns.Msg) { mu.Lock(); asked++; mu.Unlock() })
	f := startWith(t, func(s *Server) { s.try = time.Second }, slow, resolver(t, says("good")))
	for range 5 {
		f.ask("udp", question("example.com", dns.TypeTXT))
	}
	mu.Lock()
	defer mu.Unlock()
	if asked != 1 {
		t.Errorf("the mute resolver was asked %d times", asked)
	}
}

// TestTruncation has an answer of 20 kB: by UDP it is cut and says so, by TCP it
// is whole.
func TestTruncation(t *testing.T) {
	big := resolver(t, func(w dns.ResponseWriter, m *dns.Msg) {
		r := new(dns.Msg).SetReply(m)
		for i := range 100 {
			r.Answer = append(r.Answer, &dns.TXT{Hdr: header(m.Question[0].Name, dns.TypeTXT), Txt: []string{fmt.Sprintf("%0200d", i)}})
		}
		if w.RemoteAddr().Network() == "udp" {
			size := dns.MinMsgSize
			if opt := m.IsEdns0(); opt != nil {
				size = int(opt.UDPSize())
				r.SetEdns0(1232, opt.Do())
			}
			r.Truncate(size)
		}
		_ = w.WriteMsg(r)
	})
	f := start(t, big)
	small := f.ask("udp", question("big.example", dns.TypeTXT))
	if !small.Truncated || small.Len() > dns.MinMsgSize || len(small.Answer) >= 100 {
		t.Errorf("UDP: truncated %v, %d answers", small.Truncated, len(small.Answer))
	}
	edns := question("big.example", dns.TypeTXT).SetEdns0(4096, true)
	medium := f.ask("udp", edns)
	if opt := medium.IsEdns0(); !medium.Truncated || len(medium.Answer) <= len(small.Answer) || opt == nil || !opt.Do() {
		t.Errorf("UDP with EDNS: truncated %v, %d answers, %v", medium.Truncated, len(medium.Answer), opt)
	}
	if whole := f.ask("tcp", question("big.example", dns.TypeTXT)); whole.Truncated || len(whole.Answer) != 100 {
		t.Errorf("TCP: truncated %v, %d answers", whole.Truncated, len(whole.Answer))
	}
}

// TestQueryPassesUnchanged looks at what the resolver gets.
func TestQueryPassesUnchanged(t *testing.T) {
	got := make(chan *dns.Msg, 1)
	f := start(t, resolver(t, func(w dns.ResponseWriter, m *dns.Msg) {
		got <- m.Copy()
		says("seen")(w, m)
	}))
	query := question("ExAmPlE.com", dns.TypeTXT).SetEdns0(4000, true)
	query.CheckingDisabled, query.AuthenticatedData = true, true
	query.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"}}
	r := f.ask("udp", query)
	seen := <-got
	if seen.Id == query.Id {
		t.Error("the resolver saw the client's id")
	}
	seen.Id = query.Id
	if diff := cmp.Diff(query.String(), seen.String()); diff != "" {
		t.Error(diff)
	}
	if r.Question[0].Name != "ExAmPlE.com." {
		t.Errorf("answer about %s", r.Question[0].Name)
	}
}

func TestConcurrent(t *testing.T) {
	f := start(t, resolver(t, func(w dns.ResponseWriter, m *dns.Msg) { says(m.Question[0].Name)(w, m) }))
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			name := fmt.Sprintf("host%d.example.", i)
			network := []string{"udp", "tcp"}[i%2]
			r, err := f.askFrom(network, "127.1.0.5", question(name, dns.TypeTXT))
			if err != nil || len(r.Answer) != 1 || r.Answer[0].(*dns.TXT).Txt[0] != name {
				t.Errorf("%s: %v, %v", name, r, err)
			}
			if r, err := f.askFrom(network, "127.1.0.6", question("web", dns.TypeA)); err != nil || len(r.Answer) != 1 {
				t.Errorf("web: %v, %v", r, err)
			}
		})
	}
	wg.Wait()
}

func TestTooManyQueries(t *testing.T) {
	f := start(t, resolver(t, says("good")))
	for range maxForwarded {
		f.server.slots <- struct{}{}
	}
	if r := f.ask("udp", question("example.com", dns.TypeTXT)); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("answer %v", r)
	}
	if r := f.ask("udp", question("web", dns.TypeA)); len(r.Answer) != 1 {
		t.Errorf("own name: %v", r)
	}
	<-f.server.slots
	if r := f.ask("udp", question("example.com", dns.TypeTXT)); r.Rcode != dns.RcodeSuccess {
		t.Errorf("answer %v", r)
	}
}

// TestServeEndsQueriesUnderWay ends the server while a resolver keeps silent.
func TestServeEndsQueriesUnderWay(t *testing.T) {
	asked := make(chan struct{}, 1)
	slow := resolver(t, func(dns.ResponseWriter, *dns.Msg) { asked <- struct{}{} })
	s, err := NewServer(Config{Domain: "vmrun.internal", Subnet: testSubnet, Lookup: lookup, Name: nameOf,
		Upstreams: func() []netip.AddrPort { return []netip.AddrPort{slow} }})
	if err != nil {
		t.Fatal(err)
	}
	s.try = time.Hour
	packet, listener := sockets(t, "127.1.0.1")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, packet, listener) }()
	f := &fixture{t: t, address: packet.LocalAddr().String()}
	answered := make(chan *dns.Msg, 1)
	go func() {
		r, _ := f.askFrom("tcp", "127.1.0.5", question("example.com", dns.TypeA))
		answered <- r
	}()
	<-asked
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	<-answered
}

func TestResolvConf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	servers := ResolvConf(path)
	check := func(want ...string) {
		t.Helper()
		var got []string
		for _, s := range servers() {
			got = append(got, s.String())
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Error(diff)
		}
	}
	write := func(text string, at time.Time) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	noon := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	check()
	write("# a comment\nsearch example.com\nnameserver 127.0.0.53\nnameserver fe80::1%lo\nnameserver nonsense\noptions edns0\n", noon)
	check("127.0.0.53:53", "[fe80::1%lo]:53")
	write("nameserver 192.0.2.1\n", noon)
	check("192.0.2.1:53")
	write("nameserver 192.0.2.2\n", noon) // nothing tells that it changed
	check("192.0.2.1:53")
	write("nameserver 192.0.2.2\n", noon.Add(time.Second))
	check("192.0.2.2:53")
	write("", noon)
	check()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	check()
}
