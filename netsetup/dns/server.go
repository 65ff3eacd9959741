// Package dns answers the name queries of one network's machines: it knows the
// names and addresses of the network's own ports, and passes everything else on
// to the host's resolvers.
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/netutil"
)

const (
	tryTime        = 2 * time.Second // for one resolver's answer
	maxForwarded   = 256             // queries under way to resolvers
	maxConnections = 64              // of clients, over TCP
	udpSize        = 1232            // bytes; what fits an IPv6 packet of any link
)

// Config is one server on one network. Its functions are called by many
// goroutines at once.
type Config struct {
	Domain  string       // of the network's machines, such as vmrun.internal
	Subnet  netip.Prefix // whose machines are answered, and whose reverse names are ours
	Address netip.Addr   // this server as clients know it; never asked as a resolver

	Lookup    func(name string) []netip.Addr // the IPv4 addresses of a machine; nil: there is none
	Name      func(ip netip.Addr) string     // the name of an address; "": it has none
	Upstreams func() []netip.AddrPort        // the host's resolvers, best first
	Log       *slog.Logger                   // nil: nothing is logged
}

// Server answers the queries of one network.
type Server struct {
	cfg     Config
	domain  string // canonical, with the final dot
	try     time.Duration
	slots   chan struct{}
	best    atomic.Uint32 // index of the resolver that answered last
	trouble atomic.Bool   // the last query found no resolver; it was told
	self    map[netip.AddrPort]bool
}

// NewServer makes a server, which Serve then runs.
func NewServer(cfg Config) (*Server, error) {
	if _, ok := dns.IsDomainName(cfg.Domain); !ok || cfg.Domain == "" {
		return nil, fmt.Errorf("make DNS server: %q is not a domain", cfg.Domain)
	}
	if !cfg.Subnet.IsValid() || !cfg.Subnet.Addr().Is4() {
		return nil, fmt.Errorf("make DNS server: subnet %s is not IPv4", cfg.Subnet)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{
		cfg:    cfg,
		domain: dns.CanonicalName(cfg.Domain),
		try:    tryTime,
		slots:  make(chan struct{}, maxForwarded),
		self:   make(map[netip.AddrPort]bool),
	}, nil
}

// Serve answers what comes in on two sockets, until ctx ends, and then returns
// nil. It closes both. It is called once.
func (s *Server) Serve(ctx context.Context, packet net.PacketConn, listener net.Listener) error {
	for _, a := range []net.Addr{packet.LocalAddr(), listener.Addr()} {
		s.self[addrPort(a)] = true
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) { s.handle(ctx, w, m) })
	guard := func(r dns.Reader) dns.Reader { return guard{r, s.cfg.Subnet} }
	servers := []*dns.Server{
		{PacketConn: packet, Handler: handler, DecorateReader: guard, UDPSize: udpSize},
		{Listener: netutil.LimitListener(listener, maxConnections), Handler: handler, DecorateReader: guard},
	}
	ended := make(chan error, len(servers))
	for _, server := range servers {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		go func() { ended <- server.ActivateAndServe() }()
		select {
		case <-started: // only now it can be shut down
		case err := <-ended:
			return errors.Join(fmt.Errorf("serve DNS: %w", err), packet.Close(), listener.Close())
		}
	}
	return s.wait(ctx, cancel, servers, ended)
}

// wait ends both servers when ctx ends or when one of them does.
func (s *Server) wait(ctx context.Context, cancel func(), servers []*dns.Server, ended chan error) error {
	var errs []error
	running := len(servers)
	select {
	case <-ctx.Done():
	case err := <-ended:
		errs = append(errs, err)
		running--
	}
	cancel() // ends what is under way to the resolvers
	for _, server := range servers {
		// It errs if it ended by itself, for a reason that is known already.
		_ = server.Shutdown()
	}
	for range running {
		errs = append(errs, <-ended)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("serve DNS: %w", err)
	}
	return nil
}

// guard lets nothing in from outside a subnet: who is not of the network hears
// nothing, not even that its message is malformed.
type guard struct {
	dns.Reader
	subnet netip.Prefix
}

func (g guard) ReadUDP(conn *net.UDPConn, timeout time.Duration) ([]byte, *dns.SessionUDP, error) {
	m, session, err := g.Reader.ReadUDP(conn, timeout)
	if err == nil && !g.subnet.Contains(addrPort(session.RemoteAddr()).Addr()) {
		m = m[:0] // too short for an answer
	}
	return m, session, err
}

func (g guard) ReadTCP(conn net.Conn, timeout time.Duration) ([]byte, error) {
	if !g.subnet.Contains(addrPort(conn.RemoteAddr()).Addr()) {
		return nil, errors.New("connection from another network")
	}
	return g.Reader.ReadTCP(conn, timeout)
}

// handle answers one query.
func (s *Server) handle(ctx context.Context, w dns.ResponseWriter, query *dns.Msg) {
	overTCP := w.RemoteAddr().Network() == "tcp"
	reply := s.reply(ctx, query, overTCP)
	reply.Id = query.Id
	reply.Compress = true
	if !overTCP {
		size := dns.MinMsgSize
		if opt := query.IsEdns0(); opt != nil {
			size = int(opt.UDPSize())
		}
		reply.Truncate(size)
	}
	// The client has gone, or asks again.
	_ = w.WriteMsg(reply)
}

func (s *Server) reply(ctx context.Context, query *dns.Msg, overTCP bool) *dns.Msg {
	if query.Opcode != dns.OpcodeQuery {
		return refusal(query, dns.RcodeNotImplemented)
	}
	if len(query.Question) != 1 { // a bare header that promises one gets here
		return refusal(query, dns.RcodeFormatError)
	}
	q := query.Question[0]
	if opt := query.IsEdns0(); opt != nil && opt.Version() != 0 {
		return refusal(query, dns.RcodeBadVers)
	}
	if q.Qclass != dns.ClassINET || q.Qtype == dns.TypeAXFR || q.Qtype == dns.TypeIXFR {
		return refusal(query, dns.RcodeRefused)
	}
	if v, ok := s.own(q); ok {
		return s.authoritative(query, v)
	}
	return s.forward(ctx, query, overTCP)
}

// refusal is a reply without an answer.
func refusal(query *dns.Msg, rcode int) *dns.Msg {
	m := new(dns.Msg).SetRcode(query, rcode)
	m.RecursionAvailable = true
	withEDNS(m, query)
	return m
}

// withEDNS makes m speak EDNS to a client that does (RFC 6891, section 6.1.1).
func withEDNS(m, query *dns.Msg) {
	if opt := query.IsEdns0(); opt != nil {
		m.SetEdns0(udpSize, opt.Do())
	}
}

// addrPort is the address of a UDP or TCP socket, else zero.
func addrPort(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.UDPAddr:
		ap = a.AddrPort()
	case *net.TCPAddr:
		ap = a.AddrPort()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
