package netsetup

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// in does something in a namespace made with `ip netns`, such as opening a
// socket.
func in[T any](t *testing.T, name string, do func() (T, error)) (T, error) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	here, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	there, err := netns.GetFromName(name)
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	if err := netns.Set(there); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := netns.Set(here); err != nil {
			t.Fatal(err)
		}
	}()
	return do()
}

// dial connects from a namespace within a time.
func dial(t *testing.T, from, to string, limit time.Duration) (net.Conn, error) {
	return in(t, from, func() (net.Conn, error) { return net.DialTimeout("tcp4", to, limit) })
}

// patience is for what has to succeed, on a machine that does much else.
const patience = 10 * time.Second

// reaches tells whether somebody in a namespace gets an answer from an echo.
func reaches(t *testing.T, from, to string) bool {
	t.Helper()
	c, err := dial(t, from, to, time.Second)
	if err != nil {
		return false
	}
	defer c.Close()
	return echoes(c) == nil
}

// echo answers in a namespace what it is told.
func echo(t *testing.T, where, at string) {
	t.Helper()
	l, err := in(t, where, func() (net.Listener, error) { return net.Listen("tcp4", at) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				go io.Copy(c, c)
			}
		}
	}()
}

// echoes tells whether a connection still carries bytes both ways.
func echoes(c net.Conn) error {
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

// without runs a check while the network has no keeper and nobody starts one.
func without(t *testing.T, h Host, spec Spec, check func()) {
	t.Helper()
	lock, err := lockFile(filepath.Join(netsFolder(h.Runtime), spec.folder(), "spawn.lock"), unix.LOCK_EX)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	for _, pid := range keepers(t) {
		kill(t, pid)
	}
	check()
}

// street is a host on a LAN with one more machine, and guests that are
// namespaces with a leg in the network's bridge.
func street(t *testing.T) {
	t.Helper()
	uplinks(t)
	ip(t, "netns", "add", "out")
	ip(t, "link", "set", "fareth1", "netns", "out")
	ip(t, "-n", "out", "link", "set", "fareth1", "name", "eth0")
	ip(t, "-n", "out", "addr", "add", "192.0.2.1/24", "dev", "eth0")
	ip(t, "-n", "out", "link", "set", "eth0", "up")
	ip(t, "-n", "out", "route", "add", "10.0.0.0/8", "via", "192.0.2.2") // it would reach guests that are not kept from it
	if !within(patience, func() bool { return sees("eth1") }) {
		t.Fatal("eth1 does not see its other end")
	}
	echo(t, "out", "192.0.2.1:7")
}

// sees tells whether the kernel has noticed that a link's other end is up.
func sees(link string) bool {
	state, err := os.ReadFile("/sys/class/net/" + link + "/operstate")
	return err == nil && strings.TrimSpace(string(state)) == "up"
}

// route makes the host a router, and each of its links with it.
func route(t *testing.T) {
	t.Helper()
	for _, value := range []string{"0", "1"} {
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
}

func guest(t *testing.T, p *Port) {
	t.Helper()
	gateway := p.Subnet().Masked().Addr().Next()
	address := gateway.Next().Next()
	neighbour(t, "guest", address.String()+"/24", gateway.String(), p.Bridge())
	echo(t, "guest", address.String()+":7")
	t.Cleanup(func() { ip(t, "netns", "del", "guest") })
}

// TestNATWithoutKeeper: while a network has no keeper, connections that are there
// go on, nobody from outside gets in, and what passes again afterwards is
// translated, also what was tried meanwhile.
func TestNATWithoutKeeper(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	street(t)
	withEach(t, func(t *testing.T, h Host) {
		hostState(t)
		before := hostState(t)
		spec := specs()["nat"]
		p, err := Attach(context.Background(), h, spec, testPort())
		if err != nil {
			t.Fatal(err)
		}
		guest(t, p)
		c, err := dial(t, "guest", "192.0.2.1:7", patience)
		if err != nil {
			t.Fatalf("%v\n%s", err, keeperLogs(h))
		}
		defer c.Close()
		without(t, h, spec, func() {
			if err := echoes(c); err != nil {
				t.Errorf("a connection that was there does not go on: %v", err)
			}
			if reaches(t, "out", "10.70.0.3:7") {
				t.Error("a machine on the uplink reaches a guest")
			}
			passes := func() bool { return reaches(t, "guest", "192.0.2.1:7") }
			if h.Firewall == "nftables" && passes() {
				t.Error("new connections pass without a keeper")
			}
			if h.Firewall == "iptables" && !within(patience, passes) {
				t.Error("new connections don't pass, although the rules are the kernel's")
			}
		})
		died := time.Now()
		if !within(patience, func() bool { return reaches(t, "guest", "192.0.2.1:7") }) {
			t.Errorf("new connections don't pass with the next keeper:\n%s", keeperLogs(h))
		}
		t.Logf("new connections pass after %v", time.Since(died))
		if err := echoes(c); err != nil {
			t.Errorf("a connection that was there does not go on with the next keeper: %v", err)
		}
		if reaches(t, "out", "10.70.0.3:7") {
			t.Error("a machine on the uplink reaches a guest")
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		ip(t, "link", "del", "guest0")
		leftNothing(t, h, before, hostState)
	})
}

// TestHostOnlyWithoutKeeper: a host-only network stays closed while no keeper
// lives, on a host that routes.
func TestHostOnlyWithoutKeeper(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	street(t)
	withEach(t, func(t *testing.T, h Host) {
		spec := specs()["host-only"]
		p, err := Attach(context.Background(), h, spec, testPort())
		if err != nil {
			t.Fatal(err)
		}
		guest(t, p)
		address := p.Subnet().Masked().Addr().Next().Next().Next().String() + ":7"
		closed := func() {
			t.Helper()
			route(t)
			if reaches(t, "guest", "192.0.2.1:7") {
				t.Error("a guest gets out")
			}
			if reaches(t, "out", address) {
				t.Error("a machine on the uplink gets in")
			}
		}
		closed()
		without(t, h, spec, closed)
		for range 3 { // whatever moment it is: the keeper dies and is replaced
			for _, pid := range keepers(t) {
				kill(t, pid)
			}
			closed()
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if reaches(t, "out", "192.0.2.2:9") {
			t.Error("the check of what nobody serves succeeds")
		}
	})
}

// TestStreet: without any network's rules what the tests above forbid is possible.
func TestStreet(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	street(t)
	ip(t, "addr", "add", "10.70.0.1/24", "dev", "br0")
	neighbour(t, "guest", "10.70.0.3/24", "10.70.0.1", "br0")
	echo(t, "guest", "10.70.0.3:7")
	route(t)
	if !within(patience, func() bool { return reaches(t, "guest", "192.0.2.1:7") && reaches(t, "out", "10.70.0.3:7") }) {
		t.Error("guest and machine don't reach each other")
	}
}
