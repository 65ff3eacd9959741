package guest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
)

// firstRetry is when an unanswered request is sent again; the wait doubles.
const firstRetry = 500 * time.Millisecond

// lease is what a DHCP server gave to a NIC. What it didn't give is zero.
type lease struct {
	address  netip.Prefix
	gateway  netip.Addr
	dns      []netip.Addr
	domain   string
	hostname string
	mtu      int
	renewIn  time.Duration // from the time of the answer; 0: never
	expireIn time.Duration // the same
	exchange *nclient4.Lease
}

// requestLease asks for a lease until there is one or ctx ends.
func requestLease(ctx context.Context, link string) (lease, error) {
	return exchange(ctx, link, func(c *nclient4.Client, options dhcpv4.Modifier) (*nclient4.Lease, error) {
		for {
			l, err := c.Request(ctx, options)
			if _, refused := errors.AsType[*nclient4.ErrNak](err); refused && ctx.Err() == nil {
				continue // the server thought better of its offer
			}
			return l, err
		}
	})
}

// renewLease prolongs a lease; ctx ends when it expires.
func renewLease(ctx context.Context, link string, old lease) (lease, error) {
	return exchange(ctx, link, func(c *nclient4.Client, options dhcpv4.Modifier) (*nclient4.Lease, error) {
		return c.Renew(ctx, old.exchange, options)
	})
}

// exchange lends do a client, for one lease. It is not kept open any longer,
// since its raw socket sees a copy of every packet.
func exchange(ctx context.Context, link string, do func(*nclient4.Client, dhcpv4.Modifier) (*nclient4.Lease, error)) (lease, error) {
	client, err := nclient4.New(link, nclient4.WithTimeout(firstRetry), nclient4.WithRetry(-1))
	if err != nil {
		return lease{}, err
	}
	defer client.Close()
	l, err := do(client, dhcpv4.WithRequestedOptions(
		dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer,
		dhcpv4.OptionDomainName, dhcpv4.OptionInterfaceMTU, dhcpv4.OptionHostName))
	switch {
	case ctx.Err() != nil:
		return lease{}, errors.New("no answer from a DHCP server")
	case err != nil:
		return lease{}, err
	}
	result, err := newLease(l.ACK)
	result.exchange = l
	return result, err
}

// newLease reads what a server's answer grants. Options that make no sense are
// taken as not given, except for the address.
func newLease(ack *dhcpv4.DHCPv4) (lease, error) {
	addr, ok := address(ack.YourIPAddr)
	if !ok || !addr.IsGlobalUnicast() {
		return lease{}, fmt.Errorf("the DHCP server gave the address %v", ack.YourIPAddr)
	}
	mask := ack.SubnetMask()
	if mask == nil {
		mask = ack.YourIPAddr.DefaultMask() // RFC 950's classes, for want of better
	}
	ones, bits := mask.Size()
	if bits != 32 {
		return lease{}, fmt.Errorf("the DHCP server gave the subnet mask %v", mask)
	}
	l := lease{address: netip.PrefixFrom(addr, ones)}
	for _, ip := range ack.Router() {
		if gateway, ok := address(ip); ok && !l.gateway.IsValid() {
			l.gateway = gateway
		}
	}
	for _, ip := range ack.DNS() {
		if server, ok := address(ip); ok {
			l.dns = append(l.dns, server)
		}
	}
	l.domain, l.hostname = name(ack.DomainName()), name(ack.HostName())
	if mtu, err := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, ack.Options); err == nil && mtu >= 68 {
		l.mtu = int(mtu)
	}
	l.setTimes(ack)
	return l, nil
}

// setTimes sets when to renew: at the server's T1, or half time (RFC 2131, 4.4.5).
func (l *lease) setTimes(ack *dhcpv4.DHCPv4) {
	const forever = math.MaxUint32 * time.Second
	l.expireIn = ack.IPAddressLeaseTime(forever)
	if l.expireIn == forever || l.expireIn <= 0 {
		l.expireIn = 0
		return
	}
	l.renewIn = ack.IPAddressRenewalTime(l.expireIn / 2)
	if l.renewIn <= 0 || l.renewIn > l.expireIn {
		l.renewIn = l.expireIn / 2
	}
}

// address converts an IPv4 address of a packet; false for none.
func address(ip net.IP) (netip.Addr, bool) {
	addr, ok := netip.AddrFromSlice(ip.To4())
	return addr, ok && !addr.IsUnspecified()
}

// name returns a host or domain name that can be written to a file of words, or "".
func name(s string) string {
	if len(s) > 253 {
		return ""
	}
	for _, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '.', c == '_':
		default:
			return ""
		}
	}
	return s
}
