package dns

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// The network of these tests is a part of the loopback's: clients are 127.1.x.x,
// strangers and resolvers are not.
var testSubnet = netip.MustParsePrefix("127.1.0.0/16")

var machines = map[string][]netip.Addr{
	"web": {netip.MustParseAddr("127.1.0.10")},
	"db":  {netip.MustParseAddr("127.1.0.11"), netip.MustParseAddr("127.1.0.12")},
}

func lookup(name string) []netip.Addr { return machines[name] }

func nameOf(ip netip.Addr) string {
	for name, ips := range machines {
		for _, known := range ips {
			if ip == known {
				return name
			}
		}
	}
	return ""
}

// lines is a log that goroutines may share.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), s)
}

// fixture is a running server.
type fixture struct {
	t       testing.TB
	server  *Server
	address string
	log     *lines
	packet  net.PacketConn
}

// start runs a server before the resolvers given.
func start(t testing.TB, upstreams ...netip.AddrPort) *fixture {
	t.Helper()
	return startWith(t, func(*Server) {}, upstreams...)
}

// startWith is start with a change to the server before it runs.
func startWith(t testing.TB, change func(*Server), upstreams ...netip.AddrPort) *fixture {
	t.Helper()
	f := &fixture{t: t, log: new(lines)}
	packet, listener := sockets(t, "127.1.0.1")
	f.packet, f.address = packet, packet.LocalAddr().String()
	var err error
	f.server, err = NewServer(Config{
		Domain: "vmrun.internal", Subnet: testSubnet, Address: netip.MustParseAddr("127.1.0.1"), Lookup: lookup, Name: nameOf,
		Upstreams: func() []netip.AddrPort { return upstreams }, Log: slog.New(slog.NewTextHandler(f.log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	change(f.server)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.server.Serve(ctx, packet, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return f
}

// sockets opens one port for UDP and TCP.
func sockets(t testing.TB, host string) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 100 { // until a port is free for both
		listener, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		if err != nil {
			t.Fatal(err)
		}
		packet, err := net.ListenPacket("udp", listener.Addr().String())
		if err == nil {
			return packet, listener
		}
		listener.Close()
	}
	t.Fatal("no port for both UDP and TCP")
	return nil, nil
}

// resolver runs a resolver that answers as told.
func resolver(t testing.TB, answer dns.HandlerFunc) netip.AddrPort {
	t.Helper()
	packet, listener := sockets(t, "127.0.0.1")
	for _, s := range []*dns.Server{{PacketConn: packet, Handler: answer}, {Listener: listener, Handler: answer}} {
		started, done := make(chan struct{}), make(chan error, 1)
		s.NotifyStartedFunc = func() { close(started) }
		go func() { done <- s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() {
			if err := errors.Join(s.Shutdown(), <-done); err != nil {
				t.Error(err)
			}
		})
	}
	return addrPort(packet.LocalAddr())
}

// dead is the address of a resolver that is gone.
func dead(t testing.TB) netip.AddrPort {
	t.Helper()
	packet, listener := sockets(t, "127.0.0.1")
	packet.Close()
	listener.Close()
	return addrPort(packet.LocalAddr())
}

// mute is a resolver that never answers.
func mute(t testing.TB) netip.AddrPort {
	t.Helper()
	packet, listener := sockets(t, "127.0.0.1")
	t.Cleanup(func() { packet.Close(); listener.Close() })
	return addrPort(packet.LocalAddr())
}

// says answers each question with one TXT record.
func says(text string) dns.HandlerFunc {
	return func(w dns.ResponseWriter, m *dns.Msg) {
		r := new(dns.Msg).SetReply(m)
		r.Answer = []dns.RR{&dns.TXT{Hdr: header(m.Question[0].Name, dns.TypeTXT), Txt: []string{text}}}
		_ = w.WriteMsg(r)
	}
}

// fails answers each question with an error.
func fails(rcode int) dns.HandlerFunc {
	return func(w dns.ResponseWriter, m *dns.Msg) { _ = w.WriteMsg(new(dns.Msg).SetRcode(m, rcode)) }
}

func question(name string, qtype uint16) *dns.Msg {
	return new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
}

// ask is a client of the network.
func (f *fixture) ask(network string, m *dns.Msg) *dns.Msg {
	f.t.Helper()
	r, err := f.askFrom(network, "127.1.0.5", m)
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}

func (f *fixture) askFrom(network, source string, m *dns.Msg) (*dns.Msg, error) {
	client := dns.Client{Net: network, Dialer: &net.Dialer{LocalAddr: socketAddr(network, source)}, Timeout: 5 * time.Second}
	r, _, err := client.Exchange(m, f.address)
	return r, err
}

func socketAddr(network, ip string) net.Addr {
	if network == "tcp" {
		return &net.TCPAddr{IP: net.ParseIP(ip)}
	}
	return &net.UDPAddr{IP: net.ParseIP(ip)}
}
