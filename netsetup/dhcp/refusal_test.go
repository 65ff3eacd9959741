package dhcp

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

func TestExhaustion(t *testing.T) {
	w := newWorld(t)
	seen := make(map[netip.Addr]bool)
	for n := range byte(10) {
		seen[w.lease(client(n+1))] = true
	}
	if len(seen) != 10 {
		t.Fatalf("%d addresses for 10 clients", len(seen))
	}
	for range 5 {
		w.wantSilence(w.send(discover(client(99))))
	}
	w.wantLog("no address left to offer", 1)
	w.clock.advance(59 * time.Minute)
	w.wantSilence(w.send(discover(client(99))))
	w.wantLog("more=4", 1)
	w.clock.advance(2 * time.Minute)
	w.lease(client(99))
}

func TestRefusals(t *testing.T) {
	port := client(1)
	change := func(m mac, f func(p *packet)) packet {
		p := discover(m)
		f(&p)
		return p
	}
	tests := []struct {
		name   string
		packet packet
		log    string
	}{
		{"relayed from another network", change(client(9), func(p *packet) { p.GatewayIPAddr, p.src = net.IP{10, 71, 0, 5}, ip("10.71.0.5") }), "relayed DHCP request refused"},
		{"relayed by nobody", change(client(9), func(p *packet) { p.GatewayIPAddr = net.IP{10, 70, 0, 5} }), "relayed DHCP request refused"},
		{"relayed by a port", change(port, func(p *packet) { p.GatewayIPAddr, p.src = net.IP{10, 70, 0, 5}, ip("10.70.0.5") }), "relayed DHCP request refused"},
		{"port asks for another", change(client(9), func(p *packet) { p.srcMAC = port }), "for another machine refused"},
		{"stranger asks for a port", change(port, func(p *packet) { p.srcMAC = client(9) }), "for another machine refused"},
		{"reply", change(port, func(p *packet) { p.OpCode = dhcpv4.OpcodeBootReply }), ""},
		{"token ring", change(port, func(p *packet) { p.HWType = 6 }), ""},
		{"long address", change(port, func(p *packet) { p.ClientHWAddr = make(net.HardwareAddr, 16) }), ""},
		{"no address", change(mac{}, func(p *packet) {}), ""},
		{"group address", change(mac{1, 0, 0x5e}, func(p *packet) {}), ""},
		{"BOOTP", change(port, func(p *packet) { p.DeleteOption(dhcpv4.OptionDHCPMessageType) }), ""},
		{"a server's message", change(port, func(p *packet) { p.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeOffer)) }), ""},
		{"frame for another", change(port, func(p *packet) { p.dstMAC = client(7) }), ""},
		{"packet for another", change(port, func(p *packet) { p.dst = ip("10.70.0.2") }), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.reserve(port, "", "web")
			for range 3 {
				w.wantSilence(w.send(tt.packet))
			}
			if tt.log != "" {
				w.wantLog(tt.log, 1)
			} else if w.log.Len() > 0 {
				t.Errorf("log: %s", w.log)
			}
			w.lease(port)
		})
	}
	t.Run("strangers for each other", func(t *testing.T) { // a load generator, or a bridge behind a port
		w := newWorld(t)
		w.want(w.send(change(client(9), func(p *packet) { p.srcMAC = client(8) })), dhcpv4.MessageTypeOffer)
	})
}

// TestRelayOnTheNetwork is how load generators speak.
func TestRelayOnTheNetwork(t *testing.T) {
	w := newWorld(t)
	relayed := func(p packet) packet {
		p.srcMAC, p.src, p.srcPort, p.GatewayIPAddr = client(9), ip("10.70.0.5"), serverPort, net.IP{10, 70, 0, 5}
		return p
	}
	frame := w.server.answer(relayed(discover(client(1))).frame())
	d, ok := parseFrame(frame)
	if !ok || d.dstMAC != client(9) || d.dst != ip("10.70.0.5") || d.dstPort != serverPort {
		t.Fatalf("answer to %s %s:%d, whole: %v", d.dstMAC, d.dst, d.dstPort, ok)
	}
	m, err := dhcpv4.FromBytes(d.payload)
	if err != nil || !m.GatewayIPAddr.Equal(net.IP{10, 70, 0, 5}) || m.MessageType() != dhcpv4.MessageTypeOffer {
		t.Errorf("answer %v, %v", m, err)
	}
}

func TestOnlyKnown(t *testing.T) {
	w := newWorld(t, func(_ *Options, c *Config) { c.OnlyKnown = true })
	w.reserve(client(1), "", "web")
	w.lease(client(1))
	for _, p := range []packet{
		discover(client(2)),
		selecting(client(2), ip("10.70.0.105")),
		newPacket(client(2), dhcpv4.MessageTypeRequest, dhcpv4.OptRequestedIPAddress(net.IP{192, 168, 1, 1})),
		newPacket(client(2), dhcpv4.MessageTypeRequest).from("10.70.0.105"),
		newPacket(client(2), dhcpv4.MessageTypeInform).from("10.70.0.50"),
	} {
		w.wantSilence(w.send(p))
	}
	if n := len(w.leases.List()); n != 1 {
		t.Errorf("%d leases", n)
	}
}
