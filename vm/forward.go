package vm

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/vmrun/vmrun/profiles"
)

const (
	dialTimeout   = 10 * time.Second
	acceptPause   = 100 * time.Millisecond // after a failure, which is likely to come again at once
	udpIdle       = 2 * time.Minute        // after which a client of UDP is forgotten
	maxUDPClients = 256                    // of one port; further ones have to wait for others to be forgotten
	maxDatagram   = 64 << 10
)

// forwarding carries one port of the host to a port of the guest, by copying:
// the port is taken as long as it lives, and nothing of it outlives the
// process.
type forwarding struct {
	guest  func() netip.Addr // zero: not known yet
	port   uint16            // of the guest
	log    *slog.Logger
	ctx    context.Context // ends with the forwarding
	cancel context.CancelFunc
	work   sync.WaitGroup
	close  func() error // the listening socket's
}

// newForwarding listens at a port of the host and carries it to the guest, whose
// address may become known later. The caller closes the forwarding.
func newForwarding(f profiles.Forward, guest func() netip.Addr, log *slog.Logger) (*forwarding, error) {
	fw := &forwarding{
		guest: guest, port: f.GuestPort,
		log: log.With("forward", netip.AddrPortFrom(f.HostAddr, f.HostPort).String()+"/"+f.Proto),
	}
	if f.Proto == "udp" {
		conn, err := listenUDP(f)
		if err != nil {
			return nil, err
		}
		fw.start(conn.Close, func() { fw.serveUDP(conn) })
		return fw, nil
	}
	listener, err := listenTCP(f)
	if err != nil {
		return nil, err
	}
	fw.start(listener.Close, func() { fw.serveTCP(listener.AcceptTCP) })
	return fw, nil
}

func (fw *forwarding) start(closeSocket func() error, serve func()) {
	fw.ctx, fw.cancel = context.WithCancel(context.Background())
	fw.close = closeSocket
	fw.work.Go(serve)
}

// Close gives the port back, ends what is connected, and waits for it.
func (fw *forwarding) Close() error {
	fw.cancel()
	err := fw.close()
	fw.work.Wait()
	return err
}

// serveTCP carries what accept returns, until the port is closed. Everything
// else that accept may fail of passes, such as a lack of descriptors.
func (fw *forwarding) serveTCP(accept func() (*net.TCPConn, error)) {
	for {
		client, err := accept()
		switch {
		case err == nil:
			fw.work.Go(func() { fw.carryTCP(client) })
			continue
		case errors.Is(err, net.ErrClosed):
			return
		}
		fw.log.Warn("a connection was not accepted", "cause", err)
		select {
		case <-time.After(acceptPause):
		case <-fw.ctx.Done():
			return
		}
	}
}

// carryTCP joins a client with the guest until both have said their last word.
func (fw *forwarding) carryTCP(client *net.TCPConn) {
	defer client.Close()
	conn, err := fw.dialTCP()
	if err != nil {
		fw.log.Info("guest does not answer", "cause", err)
		client.SetLinger(0) // the client is refused as well, as far as still possible
		return
	}
	guest := conn.(*net.TCPConn)
	defer guest.Close()
	abort := func() { client.Close(); guest.Close() }
	defer context.AfterFunc(fw.ctx, abort)()
	var both sync.WaitGroup
	both.Go(func() { copyHalf(guest, client, abort) })
	both.Go(func() { copyHalf(client, guest, abort) })
	both.Wait()
}

var errNoAddress = errors.New("the guest has no address yet")

// target is where the guest is.
func (fw *forwarding) target() (netip.AddrPort, error) {
	guest := fw.guest()
	if !guest.IsValid() {
		return netip.AddrPort{}, errNoAddress
	}
	return netip.AddrPortFrom(guest, fw.port), nil
}

func (fw *forwarding) dialTCP() (net.Conn, error) {
	target, err := fw.target()
	if err != nil {
		return nil, err
	}
	dialer := net.Dialer{Timeout: dialTimeout}
	return dialer.DialContext(fw.ctx, "tcp", target.String())
}

func (fw *forwarding) dialUDP() (*net.UDPConn, error) {
	target, err := fw.target()
	if err != nil {
		return nil, err
	}
	return net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(target))
}

// copyHalf copies one direction and passes on its end.
func copyHalf(dst, src *net.TCPConn, abort func()) {
	if _, err := io.Copy(dst, src); err != nil || dst.CloseWrite() != nil {
		abort()
	}
}

// udpClients are the sockets by which the guest is reached on behalf of each
// client of a port.
type udpClients struct {
	mu    sync.Mutex
	conns map[netip.AddrPort]*net.UDPConn
}

func (fw *forwarding) serveUDP(listener *net.UDPConn) {
	clients := &udpClients{conns: make(map[netip.AddrPort]*net.UDPConn)}
	buf := make([]byte, maxDatagram)
	for {
		n, client, err := listener.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error about an earlier reply
		}
		if guest := fw.udpClient(clients, listener, client); guest != nil {
			// A datagram that is lost is UDP's ordinary case.
			guest.Write(buf[:n])
			guest.SetReadDeadline(time.Now().Add(udpIdle))
		}
	}
}

// udpClient is the socket of a client, which is made at its first datagram; nil
// if there can be no more.
func (fw *forwarding) udpClient(clients *udpClients, listener *net.UDPConn, client netip.AddrPort) *net.UDPConn {
	clients.mu.Lock()
	defer clients.mu.Unlock()
	if guest, ok := clients.conns[client]; ok {
		return guest
	}
	if len(clients.conns) >= maxUDPClients {
		return nil
	}
	guest, err := fw.dialUDP()
	if err != nil {
		fw.log.Info("guest is out of reach", "cause", err)
		return nil
	}
	clients.conns[client] = guest
	fw.work.Go(func() {
		fw.carryUDP(guest, listener, client)
		clients.mu.Lock()
		defer clients.mu.Unlock()
		delete(clients.conns, client)
	})
	return guest
}

// carryUDP carries the guest's replies to one client until both are silent.
func (fw *forwarding) carryUDP(guest, listener *net.UDPConn, client netip.AddrPort) {
	defer guest.Close()
	defer context.AfterFunc(fw.ctx, func() { guest.Close() })()
	buf := make([]byte, maxDatagram)
	for {
		guest.SetReadDeadline(time.Now().Add(udpIdle))
		n, err := guest.Read(buf)
		if err != nil {
			return // idle, closed, or the guest's port is: the next datagram starts afresh
		}
		listener.WriteToUDPAddrPort(buf[:n], client)
	}
}

func listenTCP(f profiles.Forward) (*net.TCPListener, error) {
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(f.HostAddr, f.HostPort)))
	if err != nil {
		return nil, portError(f, err)
	}
	return l, nil
}

func listenUDP(f profiles.Forward) (*net.UDPConn, error) {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(f.HostAddr, f.HostPort)))
	if err != nil {
		return nil, portError(f, err)
	}
	return c, nil
}

// portError names the port in a listener's error.
func portError(f profiles.Forward, err error) error {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		err = errno
	}
	return lacks(NeedPort, "listen on %s/%s: %w", netip.AddrPortFrom(f.HostAddr, f.HostPort), f.Proto, err)
}
