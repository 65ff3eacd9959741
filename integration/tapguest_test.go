package integration

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/vmrun/vmrun/integration/internal/sandbox"
	"github.com/vmrun/vmrun/integration/internal/world"
	"github.com/vmrun/vmrun/netsetup"
)

// tapGuest is a machine on a network of vmrun that needs no QEMU: a network
// namespace with a link eth0, whose frames go through a port's TAP. The test's
// process is the member.
type tapGuest struct {
	*sandbox.Namespace
	port *netsetup.Port
}

// netHost is the host as package netsetup has it.
func (h *host) netHost() netsetup.Host {
	return netsetup.Host{Executable: os.Getenv(binaryVariable),
		Runtime: filepath.Join(h.dir, "run"), State: filepath.Join(h.dir, "state")}
}

// attach joins a network as the VM of a name and a number.
func (h *host) attach(t *testing.T, spec netsetup.Spec, vm string, n byte) *netsetup.Port {
	t.Helper()
	port, err := netsetup.Attach(t.Context(), h.netHost(), spec,
		netsetup.PortSpec{VM: vm, MAC: netsetup.MAC{0x52, 0x54, 0, 7, 7, n}, Queues: 1})
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// newTapGuest puts a guest on a network, with the address that the network has
// reserved for it and the host as its router, whether that was told or not.
func newTapGuest(t *testing.T, h *host, spec netsetup.Spec, vm string, n byte) *tapGuest {
	t.Helper()
	g := &tapGuest{Namespace: sandbox.NewNamespace(t), port: h.attach(t, spec, vm, n)}
	t.Cleanup(func() { g.port.Close() }) // no more than what leave has left
	var near *os.File
	err := g.Do(func() error {
		tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, Mode: netlink.TUNTAP_MODE_TAP,
			Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR, Queues: 1, NonPersist: true}
		if err := netlink.LinkAdd(tap); err != nil {
			return err
		}
		near = tap.Fds[0]
		return netlink.LinkSetHardwareAddr(tap, g.port.MAC())
	})
	if err != nil {
		t.Fatalf("make guest's link: %v", err)
	}
	far := g.port.Files()[0]
	go pump(near, far)
	go pump(far, near)
	t.Cleanup(func() { near.Close() })
	world.SetUp(t, g.Namespace, "eth0", netip.PrefixFrom(g.port.IP(), g.port.Subnet().Bits()).String())
	world.Route(t, g.Namespace, "0.0.0.0/0", g.port.Subnet().Masked().Addr().Next().String())
	return g
}

// leave ends guests' memberships.
func leave(t *testing.T, guests ...*tapGuest) {
	t.Helper()
	for _, g := range guests {
		if err := g.port.Close(); err != nil {
			t.Error(err)
		}
	}
}

// pump passes frames on, one by each read, until one of the files is closed.
func pump(from, to *os.File) {
	frame := make([]byte, 1<<16)
	for {
		n, err := from.Read(frame)
		if err != nil {
			return
		}
		if _, err := to.Write(frame[:n]); err != nil {
			continue // the other end is not up yet, say
		}
	}
}

// stream sends numbered datagrams from one machine to another at a steady pace,
// and has them sent back. It runs until stopped.
type stream struct {
	name         string
	client, echo *net.UDPConn
	stop         context.CancelFunc
	running      sync.WaitGroup
	came         chan struct{} // one for each answer that somebody waits for

	mu       sync.Mutex
	sent     int
	arrived  int // at the other machine
	answered int
	last     time.Time
	gap      time.Duration // the longest between two answers
}

// pace is the time between two datagrams of a stream.
const pace = 5 * time.Millisecond

// newStream begins a stream from a machine to address, which the other one has.
func newStream(t *testing.T, name string, from, to *sandbox.Namespace, address string) *stream {
	t.Helper()
	s := &stream{name: name, came: make(chan struct{}, 1)}
	at := &net.UDPAddr{IP: net.ParseIP(address), Port: 4000}
	err := to.Do(func() (err error) {
		s.echo, err = net.ListenUDP("udp4", at)
		return err
	})
	if err != nil {
		t.Fatalf("stream %s: %v", name, err)
	}
	err = from.Do(func() (err error) {
		s.client, err = net.DialUDP("udp4", nil, at)
		return err
	})
	if err != nil {
		t.Fatalf("stream %s: %v", name, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s.stop = cancel
	s.running.Go(func() { s.send(ctx) })
	go s.sendBack()
	go s.receive()
	t.Cleanup(s.close)
	return s
}

// close ends the stream at once. More calls do nothing.
func (s *stream) close() {
	s.stop()
	s.client.Close()
	s.echo.Close()
}

func (s *stream) send(ctx context.Context) {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.mu.Lock()
			s.sent++
			n := s.sent
			s.mu.Unlock()
			// What is refused on the way is told by later calls: that is a loss.
			s.client.Write(binary.BigEndian.AppendUint32(nil, uint32(n)))
		case <-ctx.Done():
			return
		}
	}
}

func (s *stream) sendBack() {
	buffer := make([]byte, 64)
	for {
		n, from, err := s.echo.ReadFromUDP(buffer)
		if err != nil {
			return
		}
		s.mu.Lock()
		s.arrived++
		s.mu.Unlock()
		s.echo.WriteToUDP(buffer[:n], from)
	}
}

func (s *stream) receive() {
	buffer := make([]byte, 64)
	for {
		if _, err := s.client.Read(buffer); err != nil {
			if s.client.SetReadDeadline(time.Time{}) != nil {
				return // closed
			}
			continue // "refused" is told here
		}
		s.mu.Lock()
		s.answered++
		now := time.Now()
		if !s.last.IsZero() {
			s.gap = max(s.gap, now.Sub(s.last))
		}
		s.last = now
		s.mu.Unlock()
		select {
		case s.came <- struct{}{}:
		default:
		}
	}
}

// flows waits for some more answers.
func (s *stream) flows(t *testing.T) {
	t.Helper()
	limit := time.After(patience)
	for range 20 {
		select {
		case <-s.came:
		case <-limit:
			t.Fatalf("the stream %s does not flow", s.name)
		}
	}
}

// end stops sending, waits for what is under way and returns how many
// datagrams were not answered.
func (s *stream) end(t *testing.T) (lost int) {
	t.Helper()
	s.stop()
	s.running.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for limit := time.After(2 * time.Second); s.answered < s.sent; {
		s.mu.Unlock()
		select {
		case <-s.came:
			s.mu.Lock()
			continue
		case <-limit:
		}
		s.mu.Lock()
		break
	}
	t.Log(s.reportLocked())
	s.close()
	return s.sent - s.answered
}

// report sums a stream up.
func (s *stream) report() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reportLocked()
}

func (s *stream) reportLocked() string {
	return fmt.Sprintf("%s: %d sent, %d arrived, %d answered, %v the longest gap",
		s.name, s.sent, s.arrived, s.answered, s.gap.Round(time.Millisecond))
}

// arrivals is how many datagrams the other machine has got so far.
func (s *stream) arrivals() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.arrived
}
