package dhcp

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

func TestExchange(t *testing.T) {
	w := newWorld(t)
	a := client(1)
	w.reserve(a, "10.70.0.10", "web")
	offer := w.want(w.send(discover(a)), dhcpv4.MessageTypeOffer)
	ack := w.want(w.send(selecting(a, offer.ip())), dhcpv4.MessageTypeAck)
	for _, m := range []*answer{offer, ack} {
		if m.ip() != ip("10.70.0.10") || m.dst != m.ip() || m.dstMAC != a {
			t.Errorf("%s gives %s, sent to %s %s", m.MessageType(), m.ip(), m.dst, m.dstMAC)
		}
		want := map[string]any{
			"mask": net.IPMask{255, 255, 255, 0}, "router": []net.IP{{10, 70, 0, 1}}, "dns": []net.IP{{10, 70, 0, 1}},
			"hostname": "web", "domain": "vmrun.internal", "broadcast": net.IP{10, 70, 0, 255}, "mtu": []byte{1400 >> 8, 1400 & 255},
			"server": net.IP{10, 70, 0, 1}, "lease": time.Hour, "t1": 30 * time.Minute, "t2": 3150 * time.Second,
		}
		got := map[string]any{
			"mask": m.SubnetMask(), "router": m.Router(), "dns": m.DNS(), "hostname": m.HostName(), "domain": m.DomainName(),
			"broadcast": m.BroadcastAddress(), "mtu": m.Options.Get(dhcpv4.OptionInterfaceMTU), "server": m.ServerIdentifier(),
			"lease": m.IPAddressLeaseTime(0), "t1": m.IPAddressRenewalTime(0), "t2": m.IPAddressRebindingTime(0),
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", m.MessageType(), diff)
		}
	}
	if got := w.leases.List(); len(got) != 1 || got[0].State != Bound || !got[0].Port || !got[0].Expiry.Equal(w.clock.now().Add(time.Hour)) {
		t.Errorf("list: %+v", got)
	}
}

// TestRequest sends one DHCPREQUEST in each state of a client, to servers that
// know different things about it. Somebody else has .106.
func TestRequest(t *testing.T) {
	request := func(options ...dhcpv4.Option) packet {
		return newPacket(client(1), dhcpv4.MessageTypeRequest, options...)
	}
	wanted := func(a string) dhcpv4.Option { return dhcpv4.OptRequestedIPAddress(ip(a).AsSlice()) }
	server := func(a string) dhcpv4.Option { return dhcpv4.OptServerIdentifier(ip(a).AsSlice()) }
	const none = dhcpv4.MessageTypeNone
	ack, nak := dhcpv4.MessageTypeAck, dhcpv4.MessageTypeNak
	tests := []struct {
		name                 string
		packet               packet
		port, bound, unknown dhcpv4.MessageType // .10 is reserved for it, .105 is bound to it, neither
	}{
		{"selecting own", request(server("10.70.0.1"), wanted("10.70.0.10")), ack, nak, nak},
		{"selecting free", request(server("10.70.0.1"), wanted("10.70.0.105")), nak, ack, ack},
		{"selecting taken", request(server("10.70.0.1"), wanted("10.70.0.106")), nak, nak, nak},
		{"selecting another server", request(server("10.70.0.2"), wanted("10.70.0.105")), none, none, none},
		{"selecting nothing", request(server("10.70.0.1")), none, none, none},
		{"init-reboot own", request(wanted("10.70.0.10")), ack, nak, nak},
		{"init-reboot free", request(wanted("10.70.0.105")), nak, ack, ack},
		{"init-reboot taken", request(wanted("10.70.0.106")), nak, nak, nak},
		{"init-reboot wrong network", request(wanted("192.168.1.5")), nak, nak, nak},
		{"init-reboot server's address", request(wanted("10.70.0.1")), nak, nak, nak},
		{"init-reboot broadcast address", request(wanted("10.70.0.255")), nak, nak, nak},
		{"renewing own", request().from("10.70.0.10"), ack, nak, nak},
		{"renewing free", request().from("10.70.0.105"), nak, ack, ack},
		{"renewing taken", request().from("10.70.0.106"), nak, nak, nak},
		{"renewing wrong network", request().from("192.168.1.5"), nak, nak, nak},
		{"neither", request(), none, none, none},
	}
	for _, tt := range tests {
		states := []struct {
			name string
			make func(w *world)
			want dhcpv4.MessageType
		}{
			{"port", func(w *world) { w.reserve(client(1), "10.70.0.10", "") }, tt.port},
			{"bound", func(w *world) { w.leases.bind(client(1), ip("10.70.0.105"), "", time.Hour) }, tt.bound},
			{"unknown", func(w *world) {}, tt.unknown},
		}
		for _, state := range states {
			t.Run(tt.name+"/"+state.name, func(t *testing.T) {
				w := newWorld(t)
				state.make(w)
				w.leases.bind(client(2), ip("10.70.0.106"), "", time.Hour)
				got := w.send(tt.packet)
				if state.want == none {
					w.wantSilence(got)
					return
				}
				checkDestination(t, tt.packet, w.want(got, state.want))
			})
		}
	}
}

func checkDestination(t *testing.T, p packet, a *answer) {
	t.Helper()
	nak := a.MessageType() == dhcpv4.MessageTypeNak
	switch {
	case nak && (a.dstMAC != broadcastMAC || a.dst != ip("255.255.255.255") || a.ip().IsValid() || a.Options.Has(dhcpv4.OptionIPAddressLeaseTime)):
		t.Errorf("refusal is not a broadcast without an address: %s %s", a.dst, a.Summary())
	case !nak && (a.dstMAC != p.srcMAC || a.dst != a.ip()):
		t.Errorf("sent to %s %s", a.dstMAC, a.dst)
	}
	if a.TransactionID != p.TransactionID || a.ClientHWAddr.String() != p.ClientHWAddr.String() {
		t.Error("not an answer to the request")
	}
}

func TestRenewExtends(t *testing.T) {
	w := newWorld(t)
	addr := w.lease(client(1))
	since := w.leases.List()[0].Since
	w.clock.advance(50 * time.Minute)
	renew := newPacket(client(1), dhcpv4.MessageTypeRequest).from(addr.String())
	renew.dstMAC, renew.dst = serverMAC, serverAddr
	w.want(w.send(renew), dhcpv4.MessageTypeAck)
	got := w.leases.List()[0]
	if !got.Expiry.Equal(w.clock.now().Add(time.Hour)) || !got.Since.Equal(since) {
		t.Errorf("after renewal: %+v", got)
	}
	w.clock.advance(61 * time.Minute)
	if got := w.leases.List()[0]; got.State != Remembered {
		t.Errorf("after expiry: %+v", got)
	}
}

// TestGiven holds that an address that is given is told once, also where the client
// repeats its request, again when it starts over, and not when it renews.
func TestGiven(t *testing.T) {
	var given []string
	w := newWorld(t, func(_ *Options, c *Config) {
		c.Given = func(client net.HardwareAddr, ip netip.Addr) { given = append(given, client.String()+" "+ip.String()) }
	})
	addr := w.lease(client(1))
	ask := func(p packet, transaction byte) {
		p.TransactionID[0] = transaction
		w.want(w.send(p), dhcpv4.MessageTypeAck)
	}
	ask(selecting(client(1), addr), 1) // that of the lease
	ask(selecting(client(1), addr), 2)
	ask(newPacket(client(1), dhcpv4.MessageTypeRequest).from(addr.String()), 3)
	told := client(1).String() + " " + addr.String()
	if diff := cmp.Diff([]string{told, told}, given); diff != "" {
		t.Errorf("told are:\n%s", diff)
	}
}

func TestBroadcastFlag(t *testing.T) {
	w := newWorld(t)
	p := discover(client(1))
	p.SetBroadcast()
	if a := w.want(w.send(p), dhcpv4.MessageTypeOffer); a.dstMAC != broadcastMAC || a.dst != ip("255.255.255.255") || !a.IsBroadcast() {
		t.Errorf("sent to %s %s", a.dstMAC, a.dst)
	}
}

// TestClientIDDoesNotCount: clones share a client id, and a guest's firmware,
// initrd and system send one each.
func TestClientIDDoesNotCount(t *testing.T) {
	w := newWorld(t)
	ask := func(m mac, id string) netip.Addr {
		t.Helper()
		with := func(p packet) packet {
			p.UpdateOption(dhcpv4.OptClientIdentifier([]byte(id)))
			return p
		}
		offer := w.want(w.send(with(discover(m))), dhcpv4.MessageTypeOffer)
		return w.want(w.send(with(selecting(m, offer.ip()))), dhcpv4.MessageTypeAck).ip()
	}
	first := ask(client(1), "\x00iPXE")
	if again := ask(client(1), "\xffsystemd"); again != first {
		t.Errorf("with another client id the machine at %s got %s", first, again)
	}
	if other := ask(client(2), "\xffsystemd"); other == first {
		t.Errorf("another machine with the same client id got %s as well", other)
	}
}

func TestWithdrawnOffer(t *testing.T) {
	w := newWorld(t)
	w.want(w.send(discover(client(1))), dhcpv4.MessageTypeOffer)
	if got := w.leases.List()[0].State; got != Offered {
		t.Fatalf("state %s", got)
	}
	other := newPacket(client(1), dhcpv4.MessageTypeRequest,
		dhcpv4.OptServerIdentifier(net.IP{10, 70, 0, 2}), dhcpv4.OptRequestedIPAddress(net.IP{10, 70, 0, 77}))
	w.wantSilence(w.send(other))
	if got := w.leases.List()[0].State; got != Remembered {
		t.Errorf("state %s", got)
	}
}

func TestReleaseAndReturn(t *testing.T) {
	w := newWorld(t)
	addr := w.lease(client(1))
	toUs := dhcpv4.OptServerIdentifier(serverAddr.AsSlice())
	w.wantSilence(w.send(newPacket(client(1), dhcpv4.MessageTypeRelease, toUs).from("10.70.0.77")))
	w.wantSilence(w.send(newPacket(client(1), dhcpv4.MessageTypeRelease, dhcpv4.OptServerIdentifier(net.IP{10, 70, 0, 2})).from(addr.String())))
	if got := w.leases.List()[0].State; got != Bound {
		t.Fatalf("state %s after others' releases", got)
	}
	w.wantSilence(w.send(newPacket(client(1), dhcpv4.MessageTypeRelease, toUs).from(addr.String())))
	if got := w.leases.List()[0].State; got != Remembered {
		t.Fatalf("state %s", got)
	}
	for n := byte(2); n < 11; n++ {
		if got := w.lease(client(n)); got == addr {
			t.Fatalf("client %d got the remembered address with others free", n)
		}
	}
	if got := w.lease(client(1)); got != addr {
		t.Errorf("came back to %s, had %s", got, addr)
	}
}

func TestDecline(t *testing.T) {
	declineTo := func(server netip.Addr, m mac, a netip.Addr) packet {
		return newPacket(m, dhcpv4.MessageTypeDecline,
			dhcpv4.OptServerIdentifier(server.AsSlice()), dhcpv4.OptRequestedIPAddress(a.AsSlice()))
	}
	decline := func(m mac, a netip.Addr) packet { return declineTo(serverAddr, m, a) }
	w := newWorld(t)
	addr := w.lease(client(1))
	w.wantSilence(w.send(decline(client(2), addr))) // not the other's to decline
	w.wantSilence(w.send(declineTo(ip("10.70.0.2"), client(1), addr)))
	w.wantLog("in use by an unknown machine", 0)
	w.wantSilence(w.send(decline(client(1), addr)))
	w.wantLog("in use by an unknown machine", 1)
	for n := byte(1); n < 10; n++ {
		if got := w.lease(client(n)); got == addr {
			t.Fatalf("client %d got the declined address", n)
		}
	}
	w.wantSilence(w.send(discover(client(20)))) // the tenth address is the bad one
	w.clock.advance(declineTime + time.Second)
	if got := w.lease(client(20)); got != addr {
		t.Errorf("after declineTime: %s, want %s", got, addr)
	}

	w.reserve(client(30), "10.70.0.30", "")
	w.wantSilence(w.send(decline(client(30), ip("10.70.0.30"))))
	if got := w.lease(client(30)); got != ip("10.70.0.30") {
		t.Errorf("a port's address moved to %s", got)
	}
}

func TestInform(t *testing.T) {
	w := newWorld(t)
	p := newPacket(client(1), dhcpv4.MessageTypeInform).from("10.70.0.50")
	a := w.want(w.send(p), dhcpv4.MessageTypeAck)
	if a.ip().IsValid() || a.Options.Has(dhcpv4.OptionIPAddressLeaseTime) || a.Options.Has(dhcpv4.OptionRenewTimeValue) || a.dst != ip("10.70.0.50") || len(a.DNS()) != 1 {
		t.Errorf("to %s: %s", a.dst, a.Summary())
	}
	w.wantSilence(w.send(newPacket(client(1), dhcpv4.MessageTypeInform).from("192.168.1.1")))
	if n := len(w.leases.List()); n != 0 {
		t.Errorf("%d leases", n)
	}
}

func TestOptionOrder(t *testing.T) {
	w := newWorld(t)
	p := discover(client(1))
	id := []byte{1, 2, 3, 4}
	p.UpdateOption(dhcpv4.OptParameterRequestList(
		dhcpv4.OptionDomainNameServer, dhcpv4.OptionNTPServers, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer, dhcpv4.OptionHostName))
	p.UpdateOption(dhcpv4.OptClientIdentifier(id))
	p.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionRelayAgentInformation, []byte{1, 1, 1}))
	p.UpdateOption(dhcpv4.OptHostName("guest"))
	frame := w.server.answer(p.frame())
	var codes []byte
	for b := frame[etherLen+ipv4Len+udpLen+headerLen:]; b[0] != 255; b = b[2+b[1]:] {
		codes = append(codes, b[0])
	}
	// Type, server, client id, lease time; asked: DNS, router; never asked: mask, MTU.
	if want := []byte{53, 54, 61, 51, 6, 3, 1, 26}; !slices.Equal(codes, want) {
		t.Errorf("options %v, want %v", codes, want)
	}
	if got := w.leases.List()[0].Hostname; got != "guest" {
		t.Errorf("hostname %q", got)
	}
}

func TestServe(t *testing.T) {
	here, there := net.Pipe()
	defer here.Close()
	defer there.Close()
	w := newWorld(t, func(_ *Options, c *Config) { c.Link = here })
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- w.server.Serve(ctx) }()
	for _, frame := range [][]byte{[]byte("noise"), discover(client(1)).frame()} {
		if _, err := there.Write(frame); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 2000)
	n, err := there.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	w.want(readAnswer(t, buf[:n]), dhcpv4.MessageTypeOffer)
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if err := here.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.server.Serve(t.Context()); err == nil {
		t.Error("no error on a closed link")
	}
}

func TestNewServerRefuses(t *testing.T) {
	w := newWorld(t)
	for name, change := range map[string]func(*Config){
		"MAC":        func(c *Config) { c.MAC = nil },
		"address":    func(c *Config) { c.Address = netip.IPv6Loopback() },
		"router":     func(c *Config) { c.Router = netip.IPv6Loopback() },
		"DNS":        func(c *Config) { c.DNS = []netip.Addr{{}} },
		"lease time": func(c *Config) { c.LeaseTime = time.Second },
		"MTU":        func(c *Config) { c.MTU = 67 },
		"domain":     func(c *Config) { c.Domain = string(make([]byte, 300)) },
	} {
		cfg := w.cfg
		change(&cfg)
		if _, err := NewServer(cfg, w.leases); err == nil {
			t.Errorf("bad %s accepted", name)
		}
	}
}
