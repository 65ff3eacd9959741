package dhcp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/net/bpf"
)

// ack is a DHCP server's answer to a client.
func ack(t *testing.T, to mac, addr netip.Addr, kind dhcpv4.MessageType) []byte {
	t.Helper()
	answer, err := dhcpv4.New(dhcpv4.WithHwAddr(to[:]), dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(addr.AsSlice()))
	if err != nil {
		t.Fatal(err)
	}
	answer.OpCode = dhcpv4.OpcodeBootReply
	return appendFrame(nil, datagram{srcMAC: serverMAC, dstMAC: to, src: ip("10.70.0.1"), dst: addr,
		srcPort: serverPort, dstPort: clientPort, payload: answer.ToBytes()})
}

func TestSight(t *testing.T) {
	guest, stranger := client(1), client(9)
	addr := ip("10.70.0.5")
	none, own := netip.IPv4Unspecified(), ip("169.254.3.4")
	arp := func(from mac, sender netip.Addr) []byte {
		return arpPacket{op: arpRequest, senderMAC: from, sender: sender, target: ip("10.70.0.1")}.frame(from, broadcastMAC)
	}
	sent := func(from mac, src netip.Addr) []byte {
		return appendFrame(nil, datagram{srcMAC: from, dstMAC: serverMAC, src: src, dst: ip("10.70.0.1"), srcPort: 1000, dstPort: 53})
	}
	// Each is seen, or is not and has to be let by.
	for name, test := range map[string]struct {
		frame []byte
		tells bool
		drops bool // the kernel's filter drops it
	}{
		"asks who has":       {arp(guest, addr), true, false},
		"probes":             {arp(guest, none), false, false},
		"a stranger asks":    {arp(stranger, addr), false, true},
		"sends":              {sent(guest, addr), true, false},
		"sends without":      {sent(guest, none), false, false},
		"sends by itself":    {sent(guest, own), false, false},
		"a stranger sends":   {sent(stranger, addr), false, true},
		"is given":           {ack(t, guest, addr, dhcpv4.MessageTypeAck), true, false},
		"is offered":         {ack(t, guest, addr, dhcpv4.MessageTypeOffer), false, false},
		"a stranger's given": {ack(t, stranger, addr, dhcpv4.MessageTypeAck), false, false},
		"is told no address": {ack(t, guest, none, dhcpv4.MessageTypeAck), false, false},
		"noise":              {[]byte("noise"), false, true},
		"short":              {arp(guest, addr)[:30], false, false},
	} {
		t.Run(name, func(t *testing.T) {
			got := guestAddress(test.frame, guest)
			if tells := got == addr; tells != test.tells || usable(got) != test.tells {
				t.Errorf("it tells %v", got)
			}
			if passes := passesFilter(t, guest, test.frame); passes == test.drops {
				t.Errorf("the filter passes it: %v", passes)
			}
			here, there := net.Pipe()
			go func() {
				there.Write(test.frame)
				there.Write(arp(guest, addr))
			}()
			if seen, err := Sight(t.Context(), here, guest[:]); err != nil || seen != addr {
				t.Errorf("seen is %v, %v", seen, err)
			}
		})
	}
}

// passesFilter runs the kernel's filter.
func passesFilter(t *testing.T, guest mac, frame []byte) bool {
	t.Helper()
	machine, err := bpf.NewVM(guestFilter(guest))
	if err != nil {
		t.Fatal(err)
	}
	n, err := machine.Run(frame)
	return err == nil && n > 0
}

func TestSightEnds(t *testing.T) {
	guest := client(1)
	here, _ := net.Pipe()
	cause := errors.New("not wanted")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, err := Sight(ctx, here, guest[:]); !errors.Is(err, cause) {
		t.Errorf("got %v", err)
	}
	here, there := net.Pipe()
	there.Close()
	if _, err := Sight(t.Context(), here, guest[:]); err == nil {
		t.Error("a link that has ended shows something")
	}
	if _, err := ListenGuest("lo", net.HardwareAddr{1}); err == nil {
		t.Error("that is no Ethernet address")
	}
}

func FuzzGuestAddress(f *testing.F) {
	guest := client(1)
	f.Add(arpPacket{op: arpReply, senderMAC: guest, sender: ip("10.70.0.5"), target: ip("10.70.0.1")}.frame(guest, serverMAC))
	f.Add(appendFrame(nil, datagram{srcMAC: serverMAC, dstMAC: guest, src: ip("10.70.0.1"), dst: ip("10.70.0.5"), srcPort: 67, dstPort: 68}))
	f.Fuzz(func(t *testing.T, frame []byte) { guestAddress(frame, guest) })
}

// What is said about addresses is told from what is not.
func TestAsksAndAnswers(t *testing.T) {
	question := discover(client(1)).frame()
	answer := slices.Clone(question)
	answer[etherLen+ipv4Len+2], answer[etherLen+ipv4Len+3] = 0, clientPort
	for name, tt := range map[string]struct {
		frame         []byte
		asks, answers bool
	}{
		"question": {question, true, false},
		"answer":   {answer, false, true},
		"short":    {question[:etherLen+ipv4Len], false, false},
		"ARP":      {append(append([]byte{}, question[:12]...), 8, 6), false, false},
		"nothing":  {nil, false, false},
	} {
		if asks, answers := Asks(tt.frame), Answers(tt.frame); asks != tt.asks || answers != tt.answers {
			t.Errorf("%s: asks %v, answers %v", name, asks, answers)
		}
	}
}
