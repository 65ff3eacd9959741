// Package dhcpload asks a DHCP server for many leases, as a relay on the
// server's own network does: the answers come to one UDP socket, whatever
// machine they are for.
package dhcpload

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// patience is how long a server may take for one answer.
const patience = 2 * time.Second

// Client asks one server. Its methods may be called from several goroutines.
type Client struct {
	conn  *net.UDPConn
	relay net.IP

	mu      sync.Mutex
	waiting map[dhcpv4.TransactionID]chan *dhcpv4.DHCPv4
}

// NewClient opens a socket on the relay's address, from which it talks to the
// server. The caller closes it.
func NewClient(relay, server netip.Addr) (*Client, error) {
	conn, err := net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(relay, dhcpv4.ServerPort)),
		net.UDPAddrFromAddrPort(netip.AddrPortFrom(server, dhcpv4.ServerPort)))
	if err != nil {
		return nil, fmt.Errorf("ask for leases: %w", err)
	}
	c := &Client{conn: conn, relay: relay.AsSlice(), waiting: map[dhcpv4.TransactionID]chan *dhcpv4.DHCPv4{}}
	go c.receive()
	return c, nil
}

// Close ends all exchanges.
func (c *Client) Close() error { return c.conn.Close() }

func (c *Client) receive() {
	buffer := make([]byte, 1<<12)
	for {
		n, err := c.conn.Read(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // the server is not there for a moment
		}
		m, err := dhcpv4.FromBytes(append([]byte(nil), buffer[:n]...))
		if err != nil || m.OpCode != dhcpv4.OpcodeBootReply {
			continue
		}
		c.mu.Lock()
		waiting := c.waiting[m.TransactionID]
		c.mu.Unlock()
		select {
		case waiting <- m: // for ever where nobody waits
		default:
		}
	}
}

// ask sends a request and waits for its answer.
func (c *Client) ask(ctx context.Context, request *dhcpv4.DHCPv4) (*dhcpv4.DHCPv4, error) {
	answer := make(chan *dhcpv4.DHCPv4, 1)
	c.mu.Lock()
	c.waiting[request.TransactionID] = answer
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.waiting, request.TransactionID)
		c.mu.Unlock()
	}()
	if _, err := c.conn.Write(request.ToBytes()); err != nil {
		return nil, err
	}
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	select {
	case m := <-answer:
		return m, nil
	case <-timeout.C:
		return nil, fmt.Errorf("no answer to %s of %s within %v", request.MessageType(), request.ClientHWAddr, patience)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Lease is a whole exchange of four messages for a machine.
func (c *Client) Lease(ctx context.Context, machine net.HardwareAddr) (netip.Addr, error) {
	discover, err := dhcpv4.NewDiscovery(machine, dhcpv4.WithRelay(c.relay))
	if err != nil {
		return netip.Addr{}, err
	}
	offer, err := c.ask(ctx, discover)
	if err != nil {
		return netip.Addr{}, err
	}
	request, err := dhcpv4.NewRequestFromOffer(offer, dhcpv4.WithRelay(c.relay))
	if err != nil {
		return netip.Addr{}, err
	}
	ack, err := c.ask(ctx, request)
	if err != nil {
		return netip.Addr{}, err
	}
	if ack.MessageType() != dhcpv4.MessageTypeAck {
		return netip.Addr{}, fmt.Errorf("%s for %s", ack.MessageType(), machine)
	}
	ip, _ := netip.AddrFromSlice(ack.YourIPAddr)
	return ip.Unmap(), nil
}

// Machine is the address of the n-th of many machines.
func Machine(n uint32) net.HardwareAddr {
	return binary.BigEndian.AppendUint32(net.HardwareAddr{0x02, 0x4c}, n)
}

// Rate lets so many machines at a time ask for their first leases, each when the
// one before it is done, and returns the exchanges per second. Any exchange that
// fails is an error. No machine is asked for twice for as long as first differs.
func (c *Client) Rate(ctx context.Context, first uint32, parallel int, duration time.Duration) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, duration+2*patience)
	defer cancel()
	var next atomic.Uint32
	next.Store(first)
	var all sync.WaitGroup
	errs := make([]error, parallel)
	started := time.Now()
	for i := range parallel {
		all.Go(func() {
			for time.Since(started) < duration && errs[i] == nil {
				_, errs[i] = c.Lease(ctx, Machine(next.Add(1)))
			}
		})
	}
	all.Wait()
	return float64(next.Load()-first) / time.Since(started).Seconds(), errors.Join(errs...)
}
