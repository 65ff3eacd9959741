// Package dhcp gives the machines of one network their IPv4 addresses: a DHCP
// server (RFC 2131) on raw frames, the table of leases behind it, and ARP probes
// (RFC 5227) for networks that others give addresses on too.
//
// The table decides the address of each of the network's own ports before its
// machine starts (Leases.Reserve). The server then gives just that, and gives
// the rest of the pool to whoever else is on the network.
package dhcp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

// Config is one server on one network.
type Config struct {
	Link      Link             // the caller closes it after Serve has returned
	MAC       net.HardwareAddr // of Link's interface
	Address   netip.Addr       // the server's identifier and source address
	Router    netip.Addr       // zero: none is told
	DNS       []netip.Addr
	Domain    string        // "": none is told
	MTU       int           // bytes; 0: none is told
	LeaseTime time.Duration // at least a minute
	OnlyKnown bool          // answer nobody but ports: others serve this network too
	Log       *slog.Logger  // nil: nothing is logged
	// Given, if it is not nil, is told each address that a client is given, once in
	// a transaction, and not when that is renewed. It must not wait.
	Given func(client net.HardwareAddr, ip netip.Addr)
}

// Server answers the DHCP requests of one network.
type Server struct {
	cfg     Config
	mac     mac
	leases  *Leases
	log     quiet
	talks   talks
	options map[uint8][]byte // what each client may be told
}

// NewServer makes a server that gives out the addresses of a table. The table
// stays the caller's.
func NewServer(cfg Config, leases *Leases) (*Server, error) {
	m, err := parseMAC(cfg.MAC)
	switch {
	case err != nil:
	case !cfg.Address.Is4():
		err = fmt.Errorf("address %s: not an IPv4 address", cfg.Address)
	case cfg.Router.IsValid() && !cfg.Router.Is4():
		err = fmt.Errorf("router %s: not an IPv4 address", cfg.Router)
	case slices.ContainsFunc(cfg.DNS, func(ip netip.Addr) bool { return !ip.Is4() }):
		err = fmt.Errorf("DNS servers %v: not all IPv4 addresses", cfg.DNS)
	case cfg.LeaseTime < time.Minute:
		err = fmt.Errorf("lease time %s: under a minute", cfg.LeaseTime)
	case cfg.MTU != 0 && (cfg.MTU < 68 || cfg.MTU > 65535):
		err = fmt.Errorf("MTU %d: not between 68 and 65535", cfg.MTU)
	case len(cfg.Domain) > 253 || len(cfg.DNS) > 8:
		err = errors.New("domain or list of DNS servers is too long")
	}
	if err != nil {
		return nil, fmt.Errorf("make DHCP server: %w", err)
	}
	s := &Server{cfg: cfg, mac: m, leases: leases, log: newQuiet(cfg.Log, leases.opts.Now)}
	s.options = constantOptions(cfg, leases.opts.Pool)
	return s, nil
}

// Serve answers requests until ctx ends, and then returns nil. An error means
// that the link can't be read any more.
func (s *Server) Serve(ctx context.Context) error {
	err := receive(ctx, s.cfg.Link, func(frame []byte) {
		reply := s.answer(frame)
		if reply == nil {
			return
		}
		if _, err := s.cfg.Link.Write(reply); err != nil {
			s.log.warn("DHCP reply was not sent", "err", err)
		}
	})
	if err != nil {
		return fmt.Errorf("serve DHCP: %w", err)
	}
	return nil
}

// request is a message that the server has to do with.
type request struct {
	*dhcpv4.DHCPv4
	client   mac
	source   mac // of the frame
	kind     dhcpv4.MessageType
	relay    netip.Addr // zero: none
	ciaddr   netip.Addr // what the client says it has; zero: nothing
	wanted   netip.Addr // option 50; zero: not given
	serverID netip.Addr // option 54; zero: not given
	hostname string     // option 12, harmless; "": none
}

// answer gives the frame that replies to a frame; nil: silence.
func (s *Server) answer(frame []byte) []byte {
	d, ok := parseFrame(frame)
	if !ok || !s.addressed(d) {
		return nil
	}
	m, err := dhcpv4.FromBytes(d.payload)
	if err != nil || m.OpCode != dhcpv4.OpcodeBootRequest || m.HWType != iana.HWTypeEthernet {
		return nil
	}
	client, err := parseMAC(m.ClientHWAddr)
	if err != nil || !client.unicast() {
		return nil
	}
	r := newRequest(client, m)
	r.source = d.srcMAC
	if !s.admits(r, d.src) {
		return nil
	}
	reply, ok := s.handle(r)
	if s.leases.isPort(r.client) {
		s.talks.note(r.client, r.kind, reply, ok, s.leases.opts.Now())
	}
	if !ok {
		return nil
	}
	return s.seal(reply)
}

func newRequest(client mac, m *dhcpv4.DHCPv4) request {
	return request{
		DHCPv4:   m,
		client:   client,
		kind:     m.MessageType(),
		relay:    address(m.GatewayIPAddr),
		ciaddr:   address(m.ClientIPAddr),
		wanted:   address(m.RequestedIPAddress()),
		serverID: address(m.ServerIdentifier()),
		hostname: harmless(m.HostName()),
	}
}

// address is ip, or the zero Addr where there is none.
func address(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	if a = a.Unmap(); a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}

// harmless is a client's hostname if it is a DNS label, else "".
func harmless(name string) string {
	if len(name) > 63 {
		return ""
	}
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '-' && i > 0 && i < len(name)-1:
		default:
			return ""
		}
	}
	return name
}

// addressed tells what was sent to this server.
func (s *Server) addressed(d datagram) bool {
	if d.dstMAC != broadcastMAC && d.dstMAC != s.mac {
		return false
	}
	limited := netip.AddrFrom4([4]byte{255, 255, 255, 255})
	return d.dst == limited || d.dst == s.cfg.Address || d.dst == s.leases.opts.Pool.broadcast()
}

// admits decides who is talked to. A port asks for its own MAC and nobody asks
// for a port's; so a guest, whose source MAC the bridge holds it to, gets one
// address and can't drain the pool. A relay's clients are on another network,
// for which there are no addresses; load generators such as perfdhcp, which
// speak as a relay on this very network, are served.
func (s *Server) admits(r request, from netip.Addr) bool {
	known := s.leases.isPort(r.client)
	switch {
	case r.relay.IsValid() && (r.relay != from || !s.leases.opts.Pool.assignable(from) || s.leases.isPort(r.source)):
		s.log.warn("relayed DHCP request refused", "relay", r.relay, "mac", r.source)
		return false
	case r.source != r.client && (known || s.leases.isPort(r.source)):
		s.log.warn("DHCP request for another machine refused", "mac", r.client, "from", r.source)
		return false
	}
	return known || !s.cfg.OnlyKnown
}

// handle is the server's side of RFC 2131, section 4.3. Not ok: silence.
func (s *Server) handle(r request) (reply, bool) {
	ours := r.serverID == s.cfg.Address
	switch r.kind {
	case dhcpv4.MessageTypeDiscover:
		return s.discover(r)
	case dhcpv4.MessageTypeRequest:
		if r.serverID.IsValid() && !ours {
			s.leases.withdraw(r.client)
			return reply{}, false
		}
		return s.request(r)
	case dhcpv4.MessageTypeInform:
		if !s.leases.opts.Pool.Subnet.Contains(r.ciaddr) {
			return reply{}, false
		}
		return reply{to: r, kind: dhcpv4.MessageTypeAck}, true
	case dhcpv4.MessageTypeDecline:
		if ours {
			s.leases.decline(r.client, r.wanted)
		}
	case dhcpv4.MessageTypeRelease:
		if ours {
			s.leases.release(r.client, r.ciaddr)
		}
	}
	return reply{}, false
}

func (s *Server) discover(r request) (reply, bool) {
	ip, ok := s.leases.offer(r.client, r.wanted, r.hostname)
	if !ok {
		pool := s.leases.opts.Pool
		s.log.warn("no address left to offer", "pool", fmt.Sprintf("%s-%s", pool.First, pool.Last), "mac", r.client)
		return reply{}, false
	}
	return reply{to: r, kind: dhcpv4.MessageTypeOffer, ip: ip}, true
}

// request answers a DHCPREQUEST in each of the client's states: SELECTING and
// INIT-REBOOT name the address in option 50, RENEWING and REBINDING in ciaddr.
// Nobody else serves the addresses of those who come here, so what can't be had
// is refused aloud in all of them.
func (s *Server) request(r request) (reply, bool) {
	ip := r.wanted
	if !ip.IsValid() {
		ip = r.ciaddr
	}
	if !ip.IsValid() {
		return reply{}, false
	}
	if !s.leases.bind(r.client, ip, r.hostname, s.cfg.LeaseTime) {
		s.log.log.Debug("address refused", "ip", ip, "mac", r.client)
		return reply{to: r, kind: dhcpv4.MessageTypeNak}, true
	}
	if s.cfg.Given != nil && r.wanted.IsValid() && s.leases.begin(r.client, r.TransactionID) { // else it is a renewal
		s.cfg.Given(r.client[:], ip)
	}
	s.log.log.Debug("address given", "ip", ip, "mac", r.client, "hostname", r.hostname)
	return reply{to: r, kind: dhcpv4.MessageTypeAck, ip: ip}, true
}
