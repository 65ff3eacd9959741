package uplink

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
)

// Lease is for how long a DHCP server has prolonged an address.
type Lease struct {
	Valid   time.Duration // at least a second; math.MaxUint32 seconds: for ever
	RenewIn time.Duration // when to ask again (T1), less than Valid
}

// ErrRefused says that no server prolongs the lease.
var ErrRefused = errors.New("the DHCP server refuses to prolong the lease")

// How long a server has for its answer, and how often it is asked.
const (
	answerTime = time.Second
	askings    = 3
)

// Renew prolongs a lease of the host's own address by asking all servers on the
// wire for it, as a client does that has lost sight of its own (RFC 2131, 4.3.2,
// REBINDING). Who the client was to the server is not known: it is asked for by
// the MAC alone, then by the identifier that most clients make of it.
func Renew(ctx context.Context, link string, address netip.Addr) (Lease, error) {
	client, err := nclient4.New(link, nclient4.WithTimeout(answerTime), nclient4.WithRetry(askings))
	if err != nil {
		return Lease{}, fmt.Errorf("renew lease of %s: %w", address, err)
	}
	defer client.Close()
	var errs []error
	for _, id := range [][]byte{nil, slices.Concat([]byte{1}, client.InterfaceAddr())} {
		lease, err := renewAs(ctx, client, address, id)
		if err == nil {
			return lease, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return Lease{}, fmt.Errorf("renew lease of %s: %w", address, errors.Join(errs...))
}

func renewAs(ctx context.Context, client *nclient4.Client, address netip.Addr, id []byte) (Lease, error) {
	options := []dhcpv4.Modifier{
		dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest),
		dhcpv4.WithHwAddr(client.InterfaceAddr()),
		dhcpv4.WithClientIP(address.AsSlice()),
		dhcpv4.WithRequestedOptions(dhcpv4.OptionIPAddressLeaseTime, dhcpv4.OptionRenewTimeValue),
	}
	if id != nil {
		options = append(options, dhcpv4.WithOption(dhcpv4.OptClientIdentifier(id)))
	}
	request, err := dhcpv4.New(options...)
	if err != nil {
		return Lease{}, err
	}
	answer, err := client.SendAndRead(ctx, nclient4.DefaultServers, request,
		nclient4.IsMessageType(dhcpv4.MessageTypeAck, dhcpv4.MessageTypeNak))
	switch {
	case err != nil:
		return Lease{}, err
	case answer.MessageType() == dhcpv4.MessageTypeNak:
		return Lease{}, ErrRefused
	case !answer.YourIPAddr.Equal(net.IP(address.AsSlice())):
		return Lease{}, fmt.Errorf("the DHCP server gave %s instead", answer.YourIPAddr)
	}
	return newLease(answer)
}

// newLease reads times; T1 is half the lease unless the server says (RFC 2131,
// 4.4.5).
func newLease(ack *dhcpv4.DHCPv4) (Lease, error) {
	const forever = math.MaxUint32 * time.Second
	l := Lease{Valid: ack.IPAddressLeaseTime(0)}
	if l.Valid < time.Second {
		return l, errors.New("the DHCP server's answer has no lease time")
	}
	l.RenewIn = min(ack.IPAddressRenewalTime(l.Valid/2), forever)
	if l.RenewIn <= 0 || l.RenewIn >= l.Valid {
		l.RenewIn = l.Valid / 2
	}
	return l, nil
}
