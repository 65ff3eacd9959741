package dhcp

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/net/bpf"
)

func TestFrameRoundTrip(t *testing.T) {
	for _, size := range []int{0, 1, 2, 299, 300, 1400} {
		d := discover(client(1)).datagram
		d.payload = bytes.Repeat([]byte{0xa5}, size)
		frame := appendFrame(nil, d)
		got, ok := parseFrame(append(frame, 0, 0, 0)) // Ethernet pads short frames
		if !ok || got.src != d.src || got.dst != d.dst || got.srcMAC != d.srcMAC || got.dstMAC != d.dstMAC ||
			got.srcPort != d.srcPort || !bytes.Equal(got.payload, d.payload) {
			t.Errorf("payload of %d bytes came back as %+v, %v", size, got, ok)
		}
	}
}

// TestChecksums compares with sums made by hand.
func TestChecksums(t *testing.T) {
	d := datagram{src: ip("10.70.0.1"), dst: ip("255.255.255.255"), srcPort: 67, dstPort: 68, payload: []byte("abc")}
	frame := appendFrame(nil, d)
	// Header words: 4500+001f+0000+4000+4011+0a46+0001+ffff+ffff.
	if got, want := binary.BigEndian.Uint16(frame[etherLen+10:]), ^uint16(0xcf77); got != want {
		t.Errorf("header checksum %#04x, want %#04x", got, want)
	}
	// Pseudo header 0a46+0001+ffff+ffff+0011+000b, UDP 0043+0044+000b+0000, data 6162+6300.
	if got, want := binary.BigEndian.Uint16(frame[etherLen+ipv4Len+6:]), ^uint16(0xcf57); got != want {
		t.Errorf("UDP checksum %#04x, want %#04x", got, want)
	}
}

func TestParseFrameRefuses(t *testing.T) {
	const ipAt, udpAt = etherLen, etherLen + ipv4Len
	tests := []struct {
		name   string
		change func(f []byte) []byte
		ok     bool
	}{
		{"nothing", func(f []byte) []byte { return f }, true},
		{"VLAN tag", func(f []byte) []byte { return append(append(f[:12:12], 0x81, 0, 0, 10), f[12:]...) }, false},
		{"IPv6", func(f []byte) []byte { f[12], f[13] = 0x86, 0xdd; return f }, false},
		{"version 6", func(f []byte) []byte { f[ipAt] = 0x65; return f }, false},
		{"short header", func(f []byte) []byte { f[ipAt] = 0x44; return f }, false},
		{"header beyond the end", func(f []byte) []byte { f[ipAt+2], f[ipAt+3] = 0, 24; f[ipAt] = 0x4f; return f[:ipAt+24] }, false},
		{"length beyond the end", func(f []byte) []byte { return f[:len(f)-1] }, false},
		{"more fragments", func(f []byte) []byte { f[ipAt+6] = 0x20; return fixIP(f) }, false},
		{"fragment offset", func(f []byte) []byte { f[ipAt+7] = 1; return fixIP(f) }, false},
		{"TCP", func(f []byte) []byte { f[ipAt+9] = 6; return fixIP(f) }, false},
		{"header checksum", func(f []byte) []byte { f[ipAt+10]++; return f }, false},
		{"other port", func(f []byte) []byte { f[udpAt+3]++; return f }, false},
		{"UDP length too small", func(f []byte) []byte { f[udpAt+4], f[udpAt+5] = 0, 7; return f }, false},
		{"UDP length beyond the packet", func(f []byte) []byte { f[udpAt+4]++; return f }, false},
		{"UDP checksum", func(f []byte) []byte { f[udpAt+6]++; return f }, false},
		{"damaged payload", func(f []byte) []byte { f[len(f)-1] ^= 1; return f }, false},
		{"no UDP checksum", func(f []byte) []byte { f[udpAt+6], f[udpAt+7] = 0, 0; return f }, true},
		{"UDP checksum left to the card", offload, true},
		{"IP options", func(f []byte) []byte {
			f = append(append(f[:udpAt:udpAt], 1, 1, 1, 1), f[udpAt:]...)
			f[ipAt] = 0x46
			binary.BigEndian.PutUint16(f[ipAt+2:], uint16(len(f)-ipAt))
			return fixIP(f)
		}, true},
	}
	for _, tt := range tests {
		if _, ok := parseFrame(tt.change(discover(client(1)).frame())); ok != tt.ok {
			t.Errorf("%s: taken %v, want %v", tt.name, ok, tt.ok)
		}
	}
	whole := discover(client(1)).frame()
	for n := range len(whole) {
		if _, ok := parseFrame(whole[:n]); ok {
			t.Fatalf("frame cut to %d bytes taken", n)
		}
	}
}

// fixIP makes the IP header's checksum right.
func fixIP(f []byte) []byte {
	header := f[etherLen : etherLen+int(f[etherLen]&15)*4]
	header[10], header[11] = 0, 0
	binary.BigEndian.PutUint16(header[10:], ^fold(sum(0, header)))
	return f
}

// offload is what a kernel leaves in a datagram whose card makes the checksum.
func offload(f []byte) []byte {
	d, _ := parseFrame(f)
	udp := f[etherLen+ipv4Len:]
	binary.BigEndian.PutUint16(udp[6:], fold(d.pseudoSum(len(udp))))
	return f
}

func TestPortFilter(t *testing.T) {
	vm, err := bpf.NewVM(portFilter())
	if err != nil {
		t.Fatal(err)
	}
	other := func(change func(p *packet)) []byte {
		p := discover(client(1))
		change(&p)
		return p.frame()
	}
	fragment := fixIP(func(f []byte) []byte { f[etherLen+7] = 1; return f }(discover(client(1)).frame()))
	for name, tt := range map[string]struct {
		frame []byte
		pass  bool
	}{
		"request":  {discover(client(1)).frame(), true},
		"reply":    {other(func(p *packet) { p.dstPort = 68 }), false},
		"DNS":      {other(func(p *packet) { p.dstPort = 53 }), false},
		"fragment": {fragment, false},
		"ARP":      {arpPacket{op: arpRequest, sender: ip("10.70.0.5"), target: ip("10.70.0.6")}.frame(client(1), broadcastMAC), false},
		"short":    {make([]byte, 20), false},
	} {
		n, err := vm.Run(tt.frame)
		if err != nil || n > 0 != tt.pass {
			t.Errorf("%s: passes %d bytes, %v", name, n, err)
		}
	}
}

// FuzzAnswer feeds the server what may come from the wire. It must not panic,
// and each of its replies is whole and gives nothing outside the pool.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(discover(client(1)).frame())
	f.Add(selecting(client(1), ip("10.70.0.100")).frame())
	f.Add(newPacket(client(2), dhcpv4.MessageTypeRequest).from("10.70.0.105").frame())
	f.Add(newPacket(client(2), dhcpv4.MessageTypeInform).from("10.70.0.105").frame())
	f.Add(newPacket(client(2), dhcpv4.MessageTypeDecline, dhcpv4.OptRequestedIPAddress(ip("10.70.0.100").AsSlice()),
		dhcpv4.OptServerIdentifier(serverAddr.AsSlice())).frame())
	f.Add(offload(newPacket(client(3), dhcpv4.MessageTypeRelease).frame()))
	truncated := discover(client(4)).frame()
	f.Add(truncated[:len(truncated)-60])
	f.Fuzz(func(t *testing.T, frame []byte) {
		w := &world{t: t, opts: Options{Pool: testPool()}, cfg: Config{MAC: serverMAC[:], Address: serverAddr, LeaseTime: time.Hour}}
		w.open()
		for _, frame := range [][]byte{frame, repair(frame)} {
			reply := w.server.answer(frame)
			if reply == nil {
				continue
			}
			if a := readAnswer(t, reply); a.ip().IsValid() && !w.opts.Pool.has(a.ip()) {
				t.Errorf("gave %s", a.ip())
			}
		}
	})
}

// repair gives a fuzzed frame the lengths and checksums that let it through, so
// that the fuzzer reaches what is behind them.
func repair(frame []byte) []byte {
	if len(frame) < etherLen+ipv4Len+udpLen {
		return nil
	}
	d := discover(client(1)).datagram
	d.srcMAC = mac(frame[6:12])
	d.payload = frame[etherLen+ipv4Len+udpLen:]
	return appendFrame(nil, d)
}

func FuzzParseARP(f *testing.F) {
	f.Add(arpPacket{op: arpReply, senderMAC: client(1), sender: ip("10.70.0.5"), target: ip("10.70.0.6")}.frame(client(1), broadcastMAC))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, frame []byte) {
		p, ok := parseARP(frame)
		if !ok {
			return
		}
		if again, ok := parseARP(p.frame(client(1), client(2))); !ok || again != p {
			t.Errorf("%+v came back as %+v", p, again)
		}
	})
}
