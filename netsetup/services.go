package netsetup

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/vmrun/vmrun/netsetup/dhcp"
	"github.com/vmrun/vmrun/netsetup/dns"
	"golang.org/x/sys/unix"
)

// domain is what the names of guests end in. ".internal" is reserved for
// private use by ICANN (resolution 2024.07.29.06).
const domain = "vmrun.internal"

// leaseTime is short, so that a network that comes back with another range is
// noticed by long-running guests, and long enough to cost nothing.
const leaseTime = time.Hour

// services are what a network's keeper itself does for guests: DHCP and DNS.
// They live in the keeper and leave nothing on the host.
type services struct {
	network Resolved
	leases  *dhcp.Leases   // nil where the network has no addresses of ours
	udp     net.PacketConn // of DNS, like tcp; nil without
	tcp     net.Listener

	answering bool            // DNS has udp and tcp, and closes them
	following bool            // of what others change we hear
	requests  *os.File        // DHCP's frames
	arp       *os.File        // ARP on a wire that we share with other servers
	ctx       context.Context // from start to stop
	server    *dhcp.Server
	stop      context.CancelFunc
	running   sync.WaitGroup
}

// openServices opens what has to be known before the network comes up: the
// leases and the port of DNS. An adopted network, which is up, goes on without a
// lease file that can't be used. The caller closes it.
func openServices(k *keeper, network Resolved) (*services, error) {
	s := &services{network: network, stop: func() {}}
	if network.DHCP || network.DNSPort != 0 {
		if err := s.openLeases(k); err != nil {
			return nil, err
		}
	}
	if network.DNSPort == 0 {
		return s, nil
	}
	if err := s.listenDNS(); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *services) openLeases(k *keeper) (err error) {
	n := s.network
	s.leases, err = dhcp.OpenLeases(dhcp.Options{
		Pool: dhcp.Pool{Subnet: n.Subnet.Masked(), First: n.PoolFirst, Last: n.PoolLast, Exclude: n.taken()},
		Path: filepath.Join(k.host.State, "leases", n.Spec.folder()+".json"),
		Log:  k.log, Probe: prober(n), InUse: len(k.ports) > 0,
	})
	return err
}

// taken lists the addresses that no guest may get.
func (r Resolved) taken() []netip.Addr {
	var all []netip.Addr
	for _, a := range []netip.Addr{r.Address.Addr(), r.Gateway} {
		if a.IsValid() {
			all = append(all, a)
		}
	}
	return all
}

// prober asks the wire who has an address, where other hosts serve the same
// network; elsewhere the table knows all.
func prober(n Resolved) func(context.Context, netip.Addr, net.HardwareAddr) (net.HardwareAddr, error) {
	if n.Mode != VLAN {
		return nil
	}
	return func(ctx context.Context, ip netip.Addr, guest net.HardwareAddr) (net.HardwareAddr, error) {
		bridge, err := net.InterfaceByName(n.Link)
		if err != nil {
			return nil, fmt.Errorf("probe %s: %w", ip, err)
		}
		link, err := dhcp.ListenARP(n.Link)
		if err != nil {
			return nil, err
		}
		defer link.Close()
		return dhcp.Probe(ctx, link, dhcp.Question{IP: ip, For: guest, Sender: bridge.HardwareAddr})
	}
}

// dnsPorts is how many ports are tried for DNS, from the preferred one on.
const dnsPorts = 64

// listenDNS binds DNS to the gateway's address before that is on any interface
// (IP_FREEBIND, ip(7)), since the firewall's rules name the port and come first.
func (s *services) listenDNS() error {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		controlErr := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1)
		})
		return errors.Join(err, controlErr)
	}}
	var last error
	for i := range dnsPorts {
		at := netip.AddrPortFrom(s.network.Address.Addr(), uint16(s.network.DNSPort+i)).String()
		tcp, err := lc.Listen(context.Background(), "tcp4", at)
		if err != nil {
			last = err
			continue
		}
		udp, err := lc.ListenPacket(context.Background(), "udp4", at)
		if err != nil {
			last = errors.Join(err, tcp.Close())
			continue
		}
		s.tcp, s.udp = tcp, udp
		return nil
	}
	return fmt.Errorf("find a port for DNS: %w", last)
}

// dnsPort is where DNS listens; 0 without DNS.
func (s *services) dnsPort() int {
	if s.udp == nil {
		return 0
	}
	return s.udp.LocalAddr().(*net.UDPAddr).Port
}

// start begins to serve, on a network that is up.
func (s *services) start(k *keeper) error {
	ctx, cancel := context.WithCancel(context.Background())
	s.ctx, s.stop = ctx, cancel
	if k.checkBridge() != nil {
		return nil // adopted without it: nobody is left to serve
	}
	if s.network.DHCP {
		if err := s.startDHCP(ctx, k); err != nil {
			return err
		}
	}
	if s.udp != nil {
		if err := s.startDNS(ctx, k); err != nil {
			return err
		}
	}
	return s.keepLeases(ctx, k)
}

// follow begins to hear of what others change, and looks at once for what they
// have changed before: by now the first member has its port, and need not wait
// for that.
func (s *services) follow(k *keeper) {
	if s.following {
		return
	}
	s.following = true
	if s.network.Mode == NAT {
		k.followRoutes(s.ctx)
	}
	k.followRules(s.ctx)
	k.keepLinks(s.ctx)
}

func (s *services) startDHCP(ctx context.Context, k *keeper) error {
	n := s.network
	link, err := net.InterfaceByName(n.Link)
	if err != nil {
		return fmt.Errorf("serve DHCP: %w", err)
	}
	if s.requests, err = dhcp.Listen(n.Link); err != nil {
		return err
	}
	server, err := dhcp.NewServer(dhcp.Config{Link: s.requests, MAC: link.HardwareAddr, Address: s.serverID(k),
		Router: n.Gateway, DNS: s.resolvers(), Domain: domain, MTU: n.MTU, LeaseTime: leaseTime,
		OnlyKnown: n.Mode == VLAN, Log: k.log, Given: func(client net.HardwareAddr, ip netip.Addr) {
			k.tellEvent(Leased, s.leases.Name(ip), EventDetail{MAC: (*MAC)(client), IP: ip})
		}}, s.leases)
	if err != nil {
		return err
	}
	s.server = server
	s.running.Go(func() {
		if err := server.Serve(ctx); err != nil {
			k.log.Error("DHCP ended", "cause", err)
		}
	})
	if n.Mode == VLAN {
		return s.defend(ctx, k, link.HardwareAddr)
	}
	return nil
}

// defend answers other hosts' probes for addresses that we have reserved.
func (s *services) defend(ctx context.Context, k *keeper, mac net.HardwareAddr) error {
	var err error
	if s.arp, err = dhcp.ListenARP(s.network.Link); err != nil {
		return err
	}
	s.running.Go(func() {
		if err := dhcp.Defend(ctx, s.arp, mac, s.leases); err != nil {
			k.log.Error("defence of addresses ended", "cause", err)
		}
	})
	return nil
}

// serverID is the server's identifier. On a tenant's network where the host has
// no address it is a link-local one (RFC 3927): guests can't reach it to renew,
// and renew by broadcast instead (RFC 2131, section 4.4.5).
func (s *services) serverID(k *keeper) netip.Addr {
	if a := s.network.Address.Addr(); a.IsValid() {
		return a
	}
	sum := sha256.Sum256([]byte("server\x00" + k.names.id))
	return netip.AddrFrom4([4]byte{169, 254, 1 + sum[0]%254, sum[1]})
}

func (s *services) resolvers() []netip.Addr {
	if s.udp == nil {
		return nil
	}
	return []netip.Addr{s.network.Address.Addr()}
}

// startDNS serves names; the sockets are the server's from then on.
func (s *services) startDNS(ctx context.Context, k *keeper) error {
	upstreams := func() []netip.AddrPort { return nil } // names of outside are a way out, too
	if s.network.Mode == NAT {
		upstreams = dns.ResolvConf("/etc/resolv.conf")
	}
	server, err := dns.NewServer(dns.Config{Domain: domain, Subnet: s.network.Subnet.Masked(), Address: s.network.Address.Addr(),
		Lookup: s.leases.Lookup, Name: s.leases.Name, Upstreams: upstreams, Log: k.log})
	if err != nil {
		return err
	}
	s.answering = true
	s.running.Go(func() {
		if err := server.Serve(ctx, s.udp, s.tcp); err != nil {
			k.log.Error("DNS ended", "cause", err)
		}
	})
	return nil
}

// reserve decides a port's address; zero where the network has none to give. One that
// is held is what its guest has, whoever else on the wire has it, too.
func (s *services) reserve(p PortSpec, held bool) (netip.Addr, error) {
	if s.leases == nil || !s.network.DHCP && !p.IP.IsValid() {
		return p.IP, nil
	}
	return s.leases.Reserve(context.Background(), dhcp.Claim{MAC: p.MAC.HardwareAddr(), IP: p.IP, Hostname: p.VM, Held: held})
}

// reserveAgain keeps the addresses that ports of a dead keeper have.
func (s *services) reserveAgain(k *keeper) {
	for _, h := range k.ports {
		if h.isLost() {
			continue // its member tells
		}
		port := h.Spec
		port.IP = h.IP // it is right, whatever was asked for
		if _, err := s.reserve(port, true); err != nil {
			k.log.Warn("keep address", "vm", h.Spec.VM, "cause", err)
		}
	}
}

func (s *services) release(mac MAC) {
	if s.leases != nil {
		s.leases.Release(mac.HardwareAddr())
	}
	if s.server != nil {
		s.server.Forget(mac.HardwareAddr())
	}
}

// asked tells what a port has asked of DHCP, nil without it, and whether its
// guest has taken the address.
func (s *services) asked(mac MAC) (*Talk, bool) {
	if s.server == nil {
		return nil, false
	}
	talk := s.server.Talk(mac.HardwareAddr())
	return &talk, s.leases.Bound(mac.HardwareAddr())
}

// close ends the services and waits for them.
func (s *services) close() error {
	s.stop()
	var errs []error
	for _, c := range s.closers() {
		if err := c(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	s.running.Wait()
	if s.leases != nil {
		errs = append(errs, s.leases.Close())
	}
	return errors.Join(errs...)
}

func (s *services) closers() []func() error {
	var all []func() error
	if s.udp != nil && !s.answering {
		all = append(all, s.udp.Close, s.tcp.Close)
	}
	if s.requests != nil {
		all = append(all, s.requests.Close)
	}
	if s.arp != nil {
		all = append(all, s.arp.Close)
	}
	return all
}
