package netsetup

import (
	"context"
	"net"
	"testing"
)

// TestHostsOwnTraffic: what the host says to itself on the network's address keeps
// its source, and what guests say to others does not.
func TestHostsOwnTraffic(t *testing.T) {
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
		if got := sourceAt(t, "", "10.70.0.1:9", ""); got != "10.70.0.1" {
			t.Errorf("the host talks to its own address as %s", got)
		}
		if got := sourceAt(t, "out", "192.0.2.1:9", "guest"); got != "192.0.2.2" {
			t.Errorf("a guest talks to a machine outside as %s", got)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		ip(t, "link", "del", "guest0")
	})
}

// sourceAt is the address by which who listens in one namespace sees who connects
// from another. One without name is the test's own.
func sourceAt(t *testing.T, where, at, from string) string {
	t.Helper()
	l, err := maybeIn(t, where, func() (net.Listener, error) { return net.Listen("tcp4", at) })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := maybeIn(t, from, func() (net.Conn, error) { return net.Dial("tcp4", at) })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	return accepted.RemoteAddr().(*net.TCPAddr).IP.String()
}

func maybeIn[T any](t *testing.T, name string, do func() (T, error)) (T, error) {
	t.Helper()
	if name == "" {
		return do()
	}
	return in(t, name, do)
}
