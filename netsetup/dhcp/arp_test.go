package dhcp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
)

// TestProbe has another host answer in all the ways that matter.
func TestProbe(t *testing.T) {
	target := ip("10.70.0.5")
	own, stranger := client(1), client(9)
	answer := func(from mac, sender, about netip.Addr, op uint16) []byte {
		return arpPacket{op: op, senderMAC: from, sender: sender, target: about}.frame(from, serverMAC)
	}
	none := netip.IPv4Unspecified()
	tests := []struct {
		name   string
		answer []byte
		want   mac
	}{
		{"silence", nil, zeroMAC},
		{"in use", answer(stranger, target, none, arpReply), stranger},
		{"announced", answer(stranger, target, target, arpRequest), stranger},
		{"wanted by another too", answer(stranger, none, target, arpRequest), stranger},
		{"in use by its owner", answer(own, target, none, arpReply), zeroMAC},
		{"our own probe", answer(serverMAC, none, target, arpRequest), zeroMAC},
		{"another address", answer(stranger, ip("10.70.0.6"), target, arpRequest), zeroMAC},
		{"noise", []byte("noise"), zeroMAC},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			here, there := net.Pipe()
			go func() {
				defer there.Close()
				asked := false
				buf := make([]byte, 100)
				for {
					n, err := there.Read(buf)
					if err != nil {
						return
					}
					if p, ok := parseARP(buf[:n]); !ok || !p.isProbe() || p.target != target || p.senderMAC != serverMAC {
						return // the probe then fails
					}
					if !asked && tt.answer != nil {
						_, _ = there.Write(tt.answer)
					}
					asked = true
				}
			}()
			got, err := Probe(t.Context(), here, Question{IP: target, For: own[:], Sender: serverMAC[:]})
			if err != nil || tt.want == zeroMAC && got != nil || tt.want != zeroMAC && got.String() != tt.want.String() {
				t.Errorf("got %s, %v, want %s", got, err, tt.want)
			}
			here.Close()
		})
	}
}

func TestProbeEnds(t *testing.T) {
	here, there := net.Pipe()
	defer here.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		_, _ = there.Read(make([]byte, 100))
		cancel()
	}()
	m := client(1)
	if _, err := Probe(ctx, here, Question{IP: ip("10.70.0.5"), For: m[:], Sender: serverMAC[:]}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	there.Close()
	if _, err := Probe(t.Context(), here, Question{IP: ip("10.70.0.5"), For: m[:], Sender: serverMAC[:]}); err == nil {
		t.Error("no error on a dead link")
	}
}

func TestDefend(t *testing.T) {
	w := newWorld(t)
	w.reserve(client(1), "10.70.0.10", "web")
	w.lease(client(2))
	here, there := net.Pipe()
	defer there.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Defend(ctx, here, serverMAC[:], w.leases) }()

	probe := func(from mac, target string) {
		t.Helper()
		p := arpPacket{op: arpRequest, senderMAC: from, sender: netip.IPv4Unspecified(), target: ip(target)}
		if _, err := there.Write(p.frame(from, broadcastMAC)); err != nil {
			t.Fatal(err)
		}
	}
	probe(client(1), "10.70.0.10")  // the port's own check
	probe(serverMAC, "10.70.0.10")  // ours
	probe(client(9), "10.70.0.200") // nobody's
	probe(client(9), "10.70.0.10")  // only this one is answered
	buf := make([]byte, 100)
	n, err := there.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	p, ok := parseARP(buf[:n])
	if !ok || p.op != arpReply || p.senderMAC != client(1) || p.sender != ip("10.70.0.10") || p.targetMAC != client(9) || mac(buf[6:12]) != serverMAC {
		t.Errorf("answer %+v", p)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	here.Close()
}
