package dhcp

import (
	"encoding/binary"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

var (
	serverMAC  = mac{0x02, 0, 0, 0, 0, 1}
	serverAddr = ip("10.70.0.1")
)

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

func testPool() Pool {
	return Pool{
		Subnet:  netip.MustParsePrefix("10.70.0.0/24"),
		First:   ip("10.70.0.100"),
		Last:    ip("10.70.0.109"),
		Exclude: []netip.Addr{serverAddr},
	}
}

// clock is a time that passes when it is told to.
type clock struct{ at time.Time }

func newClock() *clock { return &clock{time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)} }

func (c *clock) now() time.Time          { return c.at }
func (c *clock) advance(d time.Duration) { c.at = c.at.Add(d) }

// world is a server without a wire.
type world struct {
	t      testing.TB
	clock  *clock
	log    *strings.Builder
	opts   Options
	cfg    Config
	leases *Leases
	server *Server
}

type change func(*Options, *Config)

func newWorld(t testing.TB, changes ...change) *world {
	t.Helper()
	w := &world{t: t, clock: newClock(), log: new(strings.Builder)}
	log := slog.New(slog.NewTextHandler(w.log, nil))
	w.opts = Options{Pool: testPool(), Path: filepath.Join(t.TempDir(), "leases"), Log: log, Now: w.clock.now}
	w.cfg = Config{
		MAC: serverMAC[:], Address: serverAddr, Router: serverAddr, DNS: []netip.Addr{serverAddr},
		Domain: "vmrun.internal", MTU: 1400, LeaseTime: time.Hour, Log: log,
	}
	for _, c := range changes {
		c(&w.opts, &w.cfg)
	}
	w.open()
	t.Cleanup(func() {
		if err := w.leases.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// open makes table and server, as a new keeper does.
func (w *world) open() {
	w.t.Helper()
	var err error
	if w.leases, err = OpenLeases(w.opts); err != nil {
		w.t.Fatal(err)
	}
	if w.server, err = NewServer(w.cfg, w.leases); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) reserve(m mac, fixed, hostname string) netip.Addr {
	w.t.Helper()
	c := Claim{MAC: m[:], Hostname: hostname}
	if fixed != "" {
		c.IP = ip(fixed)
	}
	got, err := w.leases.Reserve(w.t.Context(), c)
	if err != nil {
		w.t.Fatal(err)
	}
	return got
}

// client is a machine on the network.
func client(n byte) mac { return mac{0x52, 0x54, 0, 0, 0, n} }

// packet is a frame about to be sent, and its message.
type packet struct {
	datagram
	*dhcpv4.DHCPv4
}

// newPacket is a client's broadcast of a kind.
func newPacket(m mac, kind dhcpv4.MessageType, options ...dhcpv4.Option) packet {
	msg := &dhcpv4.DHCPv4{
		OpCode: dhcpv4.OpcodeBootRequest, HWType: 1, ClientHWAddr: append(net.HardwareAddr(nil), m[:]...),
		TransactionID: dhcpv4.TransactionID{1, 2, 3, m[5]}, Options: make(dhcpv4.Options),
	}
	msg.UpdateOption(dhcpv4.OptMessageType(kind))
	for _, o := range options {
		msg.UpdateOption(o)
	}
	return packet{
		datagram{srcMAC: m, dstMAC: broadcastMAC, src: netip.IPv4Unspecified(), dst: ip("255.255.255.255"), srcPort: clientPort, dstPort: serverPort},
		msg,
	}
}

// from makes the packet one of a client that has its address.
func (p packet) from(addr string) packet {
	p.ClientIPAddr = ip(addr).AsSlice()
	p.src = ip(addr)
	return p
}

func (p packet) frame() []byte {
	p.payload = p.ToBytes()
	return appendFrame(nil, p.datagram)
}

// answer is a reply as a client sees it.
type answer struct {
	datagram
	*dhcpv4.DHCPv4
}

func (a answer) ip() netip.Addr { return address(a.YourIPAddr) }

// send gives the answer, or nil for silence.
func (w *world) send(p packet) *answer {
	w.t.Helper()
	frame := w.server.answer(p.frame())
	if frame == nil {
		return nil
	}
	return readAnswer(w.t, frame)
}

// readAnswer checks a reply's frame with code that is not the server's.
func readAnswer(t testing.TB, frame []byte) *answer {
	t.Helper()
	// parseFrame wants datagrams to servers; all else about it holds.
	patched := append([]byte(nil), frame...)
	port := patched[etherLen+ipv4Len+2:]
	if binary.BigEndian.Uint16(port) != clientPort {
		t.Fatalf("reply to port %d", binary.BigEndian.Uint16(port))
	}
	binary.BigEndian.PutUint16(port, serverPort)
	check := patched[etherLen+ipv4Len+6:]
	if binary.BigEndian.Uint16(check) == 0 {
		t.Fatal("reply without checksum")
	}
	binary.BigEndian.PutUint16(check, fold(uint32(binary.BigEndian.Uint16(check))+clientPort-serverPort))
	d, ok := parseFrame(patched)
	if !ok {
		t.Fatalf("reply is no whole UDP datagram: %x", frame)
	}
	m, err := dhcpv4.FromBytes(d.payload)
	if err != nil {
		t.Fatal(err)
	}
	if len(d.payload) < bootpLen || m.OpCode != dhcpv4.OpcodeBootReply || d.srcMAC != serverMAC || d.src != serverAddr {
		t.Fatalf("not a server's reply: %d bytes, %s from %s", len(d.payload), m.OpCode, d.src)
	}
	return &answer{d, m}
}

func (w *world) want(a *answer, kind dhcpv4.MessageType) *answer {
	w.t.Helper()
	if a == nil {
		w.t.Fatalf("silence, want %s; log: %s", kind, w.log)
	}
	if a.MessageType() != kind {
		w.t.Fatalf("got %s, want %s; log: %s", a.MessageType(), kind, w.log)
	}
	return a
}

func (w *world) wantSilence(a *answer) {
	w.t.Helper()
	if a != nil {
		w.t.Fatalf("got %s, want silence", a.Summary())
	}
}

// wantLog counts the lines of the log that have a text.
func (w *world) wantLog(text string, lines int) {
	w.t.Helper()
	if n := strings.Count(w.log.String(), text); n != lines {
		w.t.Errorf("log has %q %d times, want %d:\n%s", text, n, lines, w.log)
	}
}

func discover(m mac) packet { return newPacket(m, dhcpv4.MessageTypeDiscover) }

// selecting is the request that takes an offer.
func selecting(m mac, addr netip.Addr) packet {
	return newPacket(m, dhcpv4.MessageTypeRequest,
		dhcpv4.OptServerIdentifier(serverAddr.AsSlice()), dhcpv4.OptRequestedIPAddress(addr.AsSlice()))
}

// lease goes through the whole exchange.
func (w *world) lease(m mac) netip.Addr {
	w.t.Helper()
	offer := w.want(w.send(discover(m)), dhcpv4.MessageTypeOffer)
	ack := w.want(w.send(selecting(m, offer.ip())), dhcpv4.MessageTypeAck)
	if ack.ip() != offer.ip() {
		w.t.Fatalf("offered %s, gave %s", offer.ip(), ack.ip())
	}
	return ack.ip()
}

func optHostname(name string) dhcpv4.Option { return dhcpv4.OptHostName(name) }
