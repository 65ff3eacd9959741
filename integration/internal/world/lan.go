// Package world builds what lies around a host under test: the LAN beyond its
// uplink with a gateway and its services, other machines there, the trunk
// between two hosts. All of it is made of network namespaces, and ends with the
// test that made it.
package world

import (
	"fmt"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/vmrun/vmrun/integration/internal/sandbox"
)

// Addresses of the LAN, out of the range that RFC 5737 keeps for examples.
const (
	Gateway = "192.0.2.1" // also serves HTTP and DNS
	Host    = "192.0.2.2" // the host's, where its uplink has one
	Domain  = "outside.test"
)

// LAN is an Ethernet with a gateway on it. The gateway's namespace is also the
// switch.
type LAN struct {
	Gateway *sandbox.Namespace
	plugs   int
}

const switchName = "switch"

// NewLAN makes a LAN with no machine on it but the gateway, Gateway/24.
func NewLAN(t *testing.T) *LAN {
	t.Helper()
	lan := &LAN{Gateway: sandbox.NewNamespace(t)}
	links := lan.Gateway.Links()
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: switchName}}
	if err := links.LinkAdd(bridge); err != nil {
		t.Fatalf("make switch: %v", err)
	}
	SetUp(t, lan.Gateway, switchName, Gateway+"/24")
	return lan
}

// Plug connects a namespace to the LAN by a link of the given name, which is up
// and without address.
func (l *LAN) Plug(t *testing.T, ns *sandbox.Namespace, name string) {
	t.Helper()
	l.plugs++
	port := fmt.Sprintf("port%d", l.plugs)
	Wire(t, l.Gateway, port, ns, name)
	links := l.Gateway.Links()
	bridge, err := links.LinkByName(switchName)
	if err != nil {
		t.Fatal(err)
	}
	link, err := links.LinkByName(port)
	if err != nil {
		t.Fatal(err)
	}
	if err := links.LinkSetMaster(link, bridge); err != nil {
		t.Fatalf("plug %s into the LAN: %v", name, err)
	}
	SetUp(t, l.Gateway, port)
	SetUp(t, ns, name)
	Settle(t, ns, name)
}

// Uplink gives a host an uplink to the LAN, with the address Host/24 and its
// default route through the gateway.
func (l *LAN) Uplink(t *testing.T, host *sandbox.Namespace, name string) {
	t.Helper()
	l.Plug(t, host, name)
	SetUp(t, host, name, Host+"/24")
	Route(t, host, "0.0.0.0/0", Gateway)
}

// Machine puts one more machine on the LAN, with the given address in CIDR
// notation on its link eth0.
func (l *LAN) Machine(t *testing.T, address string) *sandbox.Namespace {
	t.Helper()
	ns := sandbox.NewNamespace(t)
	l.Plug(t, ns, "eth0")
	SetUp(t, ns, "eth0", address)
	return ns
}

// Wire joins two namespaces by a pair of links, both left down.
func Wire(t *testing.T, a *sandbox.Namespace, aName string, b *sandbox.Namespace, bName string) {
	t.Helper()
	// Made in a's namespace, so that neither end is ever in the caller's.
	pair := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: aName},
		PeerName:      bName,
		PeerNamespace: netlink.NsFd(b.File().Fd()),
	}
	if err := a.Links().LinkAdd(pair); err != nil {
		t.Fatalf("wire %s to %s: %v", aName, bName, err)
	}
	t.Cleanup(func() {
		if err := a.Links().LinkDel(pair); err != nil {
			t.Errorf("remove wire %s: %v", aName, err)
		}
	})
}

// SetUp gives a link addresses in CIDR notation and sets it up.
func SetUp(t *testing.T, ns *sandbox.Namespace, name string, addresses ...string) {
	t.Helper()
	link, err := ns.Links().LinkByName(name)
	if err != nil {
		t.Fatalf("find %s: %v", name, err)
	}
	for _, text := range addresses {
		address, err := netlink.ParseAddr(text)
		if err != nil {
			t.Fatal(err)
		}
		if err := ns.Links().AddrAdd(link, address); err != nil {
			t.Fatalf("add %s to %s: %v", text, name, err)
		}
	}
	if err := ns.Links().LinkSetUp(link); err != nil {
		t.Fatalf("set %s up: %v", name, err)
	}
}

// Settle waits until a link, whose other end is up too, has noticed that: its
// state and its link-local address come some time after it was set up.
func Settle(t *testing.T, ns *sandbox.Namespace, name string) {
	t.Helper()
	SettleAs(t, ns, name, netlink.OperUp)
}

// SettleAs waits until a link is in the given state.
func SettleAs(t *testing.T, ns *sandbox.Namespace, name string, want netlink.LinkOperState) {
	t.Helper()
	updates, done := make(chan netlink.LinkUpdate), make(chan struct{})
	defer close(done)
	handle := netns.NsHandle(ns.File().Fd())
	err := netlink.LinkSubscribeWithOptions(updates, done, netlink.LinkSubscribeOptions{Namespace: &handle, ListExisting: true})
	if err != nil {
		t.Fatalf("watch %s: %v", name, err)
	}
	for timeout := time.After(time.Minute); ; {
		select {
		case u := <-updates:
			if a := u.Link.Attrs(); a.Name == name && a.OperState == want {
				return
			}
		case <-timeout:
			t.Fatalf("%s is not %v", name, want)
		}
	}
}

// Route adds a route to a network through a gateway.
func Route(t *testing.T, ns *sandbox.Namespace, network, gateway string) {
	t.Helper()
	_, dst, err := net.ParseCIDR(network)
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Links().RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP(gateway)}); err != nil {
		t.Fatalf("add route to %s: %v", network, err)
	}
}

// Ping asks once for an echo, with two seconds for the answer.
func Ping(ns *sandbox.Namespace, address string) error {
	return ns.Do(func() error {
		out, err := exec.Command("busybox", "ping", "-c1", "-W2", address).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ping %s: %w: %s", address, err, strings.TrimSpace(string(out)))
		}
		return nil
	})
}
