package guest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// nic is a network card.
type nic struct {
	link  netlink.Link
	lease lease // zero: none
	order int   // among the cards; the first one's gateway wins
	names *nameFiles
}

func (n *nic) name() string { return n.link.Attrs().Name }

// configureNICs brings up lo and all cards at once, prints a line for each as
// soon as it is known what became of it, and returns when that is so for all.
// What comes later is followed from then on.
func configureNICs(config Config) error {
	uevents, err := listenUevents()
	if err != nil {
		return err
	}
	names := newNameFiles()
	nics, err := findNICs(names)
	if err != nil {
		return errors.Join(err, uevents.Close())
	}
	defer func() { go followDevices(uevents, config, names, len(nics)) }()
	if len(nics) == 0 && len(config.Missing) > 0 {
		say("no network card; the kernel has no %s", strings.Join(config.Missing, ", "))
	}
	if len(nics) > 0 {
		// The DHCP library draws random numbers in a way that neither waits for
		// the kernel's generator nor makes it start. Without a hardware
		// generator it would never get any.
		if _, err := unix.Getrandom(make([]byte, 1), 0); err != nil {
			return fmt.Errorf("wait for random numbers: %w", err)
		}
	}
	var wg sync.WaitGroup
	for _, n := range nics {
		wg.Go(func() {
			defer powerOffOnPanic()
			n.start(config.LeaseTimeout)
		})
	}
	wg.Wait()
	return names.set(nics...)
}

// findNICs brings up lo and lists the cards, in the kernel's order. Interfaces
// without a device behind them are no cards.
func findNICs(names *nameFiles) ([]*nic, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list network interfaces: %w", err)
	}
	slices.SortFunc(links, func(a, b netlink.Link) int { return cmp.Compare(a.Attrs().Index, b.Attrs().Index) })
	var nics []*nic
	for _, l := range links {
		attrs := l.Attrs()
		if attrs.Flags&net.FlagLoopback != 0 {
			if err := netlink.LinkSetUp(l); err != nil {
				return nil, fmt.Errorf("set %s up: %w", attrs.Name, err)
			}
		}
		if isCard(attrs.Name) {
			nics = append(nics, &nic{link: l, order: len(nics), names: names})
		}
	}
	return nics, nil
}

// isCard tells an interface with a device behind it.
func isCard(name string) bool {
	_, err := os.Stat(filepath.Join("/sys/class/net", name, "device"))
	return err == nil
}

// start gets and applies a first lease, prints the NIC's line, and keeps the
// lease alive from then on.
func (n *nic) start(timeout time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	err := netlink.LinkSetUp(n.link)
	if err == nil {
		n.lease, err = requestLease(ctx, n.name())
	}
	if err == nil {
		err = n.apply()
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("%w within %v", err, timeout)
	}
	say("%s", n.line(err))
	if err == nil {
		go n.keep()
	}
}

// line tells what became of the NIC: its address, or why it has none.
func (n *nic) line(err error) string {
	attrs := n.link.Attrs()
	line := attrs.Name + " " + attrs.HardwareAddr.String()
	if err != nil {
		return line + " no lease: " + err.Error()
	}
	line += " " + n.lease.address.String()
	if n.lease.gateway.IsValid() {
		line += " gw " + n.lease.gateway.String()
	}
	if len(n.lease.dns) > 0 {
		line += " dns " + joinAddrs(n.lease.dns)
	}
	return line
}

func joinAddrs(addrs []netip.Addr) string {
	var words []string
	for _, a := range addrs {
		words = append(words, a.String())
	}
	return strings.Join(words, ",")
}

// apply sets MTU, address and default route.
func (n *nic) apply() error {
	if n.lease.mtu > 0 {
		if err := netlink.LinkSetMTU(n.link, n.lease.mtu); err != nil {
			return fmt.Errorf("set MTU %d: %w", n.lease.mtu, err)
		}
	}
	if err := netlink.AddrReplace(n.link, n.addr()); err != nil {
		return fmt.Errorf("set address: %w", err)
	}
	if !n.lease.gateway.IsValid() {
		return nil
	}
	route := &netlink.Route{
		LinkIndex: n.link.Attrs().Index,
		Dst:       &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
		Gw:        n.lease.gateway.AsSlice(),
		Protocol:  unix.RTPROT_DHCP,
		Priority:  n.order,
		// Servers may give a gateway outside of the subnet, such as with a /32.
		Flags: int(netlink.FLAG_ONLINK),
	}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("set default route: %w", err)
	}
	return nil
}

// addr is the lease's address in netlink's form.
func (n *nic) addr() *netlink.Addr {
	p := n.lease.address
	return &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}}
}

// keep renews the lease for as long as the guest runs. An address whose lease
// ran out is given up, and another one asked for.
func (n *nic) keep() {
	defer powerOffOnPanic()
	for n.lease.renewIn > 0 {
		expiry := time.Now().Add(n.lease.expireIn)
		time.Sleep(n.lease.renewIn)
		ctx, cancel := context.WithDeadline(context.Background(), expiry)
		next, err := renewLease(ctx, n.name(), n.lease)
		cancel()
		if err != nil {
			say("%s", n.line(fmt.Errorf("not renewed: %w", err)))
			next, err = n.replaceLease()
		}
		if err != nil {
			say("%s", n.line(err))
			return
		}
		n.lease = next
		if err := errors.Join(n.apply(), n.names.set(n)); err != nil {
			say("%s", n.line(err))
		}
	}
}

// replaceLease gives the address up, then waits for another for as long as it takes.
func (n *nic) replaceLease() (lease, error) {
	err := netlink.AddrDel(n.link, n.addr())
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return lease{}, fmt.Errorf("remove address: %w", err)
	}
	return requestLease(context.Background(), n.name())
}
