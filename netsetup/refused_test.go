package netsetup

import (
	"context"
	"net"
	"testing"
)

// throw sends datagrams from a namespace that nobody answers.
func throw(t *testing.T, from, to string, n int) {
	t.Helper()
	c, err := in(t, from, func() (net.PacketConn, error) { return net.ListenPacket("udp4", ":0") })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	address, err := net.ResolveUDPAddr("udp4", to)
	for range n {
		if err == nil {
			_, err = c.WriteTo([]byte("x"), address)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestRefusedAreCounted: what the network's rules keep from passing is told, both
// ways, also of before the keeper's death; what passes is not.
func TestRefusedAreCounted(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	street(t)
	withEach(t, func(t *testing.T, h Host) {
		p, err := Attach(context.Background(), h, specs()["nat"], testPort())
		if err != nil {
			t.Fatal(err)
		}
		guest(t, p)
		counts := func() Refused {
			t.Helper()
			r := lan(t, h)
			if r.Refused == nil {
				t.Fatalf("nothing is counted:\n%s", keeperLogs(h))
			}
			return *r.Refused
		}
		const tries = 20 // more than a namespace says by itself
		began := counts()
		for range tries {
			if !within(patience, func() bool { return reaches(t, "guest", "192.0.2.1:7") }) {
				t.Fatal("the guest does not get out")
			}
		}
		passed := counts()
		if n := passed.FromGuests - began.FromGuests; n >= tries || passed.ToGuests != 0 {
			t.Errorf("what passes is counted: %+v, before %+v", passed, began)
		}
		var inside, outside Refused
		throw(t, "guest", "10.70.0.1:9", tries)
		if !within(patience, func() bool { inside = counts(); return inside.FromGuests-passed.FromGuests >= tries }) {
			t.Errorf("counted %+v after %d packets to the host, before %+v", inside, tries, passed)
		}
		if inside.FromGuests-passed.FromGuests >= 2*tries || inside.ToGuests != 0 {
			t.Errorf("counted %+v after %d packets to the host, before %+v", inside, tries, passed)
		}
		throw(t, "out", "10.70.0.3:9", tries)
		if !within(patience, func() bool { outside = counts(); return outside.ToGuests == tries }) ||
			outside.FromGuests-inside.FromGuests >= tries {
			t.Errorf("counted %+v after %d packets from outside, before %+v", outside, tries, inside)
		}
		kill(t, only(t))
		awaitReport(t, h, func(r Report) bool { return r.KeeperID != 0 })
		if again := counts(); again.FromGuests < outside.FromGuests || again.ToGuests < outside.ToGuests {
			t.Errorf("the next keeper counted %+v, before %+v", again, outside)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		ip(t, "link", "del", "guest0")
	})
}
