package netsetup

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vmrun/vmrun/netsetup/libvirt"
	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/netsetup/firewall"
)

// host is the real kernel, of the network namespace that the process is in.
type host struct {
	nl       *netlink.Handle
	raw      *nl.SocketHandle // for requests that the library does not know
	firewall *firewall.Host
}

// newHost opens the kernel. The lock is the network's, lent to each child; nil:
// no child changes anything.
func newHost(lock *os.File) (*host, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	raw, err := nl.Subscribe(unix.NETLINK_ROUTE) // to nothing
	if err != nil {
		handle.Close()
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return &host{nl: handle, raw: &nl.SocketHandle{Socket: raw}, firewall: firewall.NewHost(lock)}, nil
}

func (h *host) close() {
	h.nl.Close()
	h.raw.Close()
	h.firewall.Close()
}

// request is one that the kernel acknowledges at once, over the host's own
// socket: what waits for a grace period would hold up the others.
func (h *host) request(kind, flags int) *nl.NetlinkRequest {
	r := nl.NewNetlinkRequest(kind, flags|unix.NLM_F_ACK)
	r.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: h.raw}
	return r
}

func (h *host) Libvirt() libvirtd { return libvirt.Daemon{Sockets: libvirt.DefaultSockets()} }

// retried repeats a dump that another process's change interrupted.
func retried[T any](dump func() (T, error)) (T, error) {
	for range 16 {
		v, err := dump()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return v, err
		}
	}
	return dump()
}

func (h *host) Links() ([]Link, error) {
	links, err := retried(h.nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	addrs, err := retried(func() ([]netlink.Addr, error) { return h.nl.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var out []Link
	for _, l := range links {
		out = append(out, newLink(l, addrs))
	}
	return out, nil
}

func newLink(l netlink.Link, addrs []netlink.Addr) Link {
	a := l.Attrs()
	out := Link{Index: a.Index, Name: a.Name, Kind: l.Type(), MTU: a.MTU, Group: a.Group, Parent: a.ParentIndex,
		Master: a.MasterIndex, Up: a.Flags&net.FlagUp != 0, Loopback: a.Flags&net.FlagLoopback != 0}
	if len(a.HardwareAddr) == 6 {
		out.MAC = MAC(a.HardwareAddr)
	}
	if len(a.AltNames) > 0 {
		out.Altname = a.AltNames[0]
	}
	if n := a.Statistics; n != nil {
		out.In, out.Out = Traffic{n.RxBytes, n.RxPackets, n.RxDropped}, Traffic{n.TxBytes, n.TxPackets, n.TxDropped}
	}
	if t, ok := l.(*netlink.Tuntap); ok {
		out.Persistent = !t.NonPersist
	}
	if v, ok := l.(*netlink.Vlan); ok {
		out.VLAN = v.VlanId
	}
	_, err := os.Stat(filepath.Join("/sys/class/net", a.Name, "phy80211"))
	out.Wireless = err == nil
	for _, addr := range addrs {
		if addr.LinkIndex == a.Index {
			if p, ok := prefix(addr.IPNet); ok {
				out.Addrs = append(out.Addrs, p)
			}
		}
	}
	return out
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones), ok
}

// Routes lists unicast routes and blackholes of both families and all tables but
// "local", whose entries follow from the addresses. They lead through some of
// the links.
func (h *host) Routes(links []Link) ([]Route, error) {
	routes, err := retried(func() ([]netlink.Route, error) {
		return h.nl.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	byIndex := map[int]string{}
	for _, l := range links {
		byIndex[l.Index] = l.Name
	}
	var out []Route
	for _, r := range routes {
		if r.Table == unix.RT_TABLE_LOCAL || r.Type == unix.RTN_LOCAL || r.Type == unix.RTN_BROADCAST {
			continue
		}
		dst, ok := prefix(r.Dst)
		switch {
		case !ok && r.Family == netlink.FAMILY_V6:
			dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		case !ok:
			dst = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		}
		for _, index := range nextLinks(r) {
			out = append(out, Route{Dst: dst, Link: byIndex[index], Table: r.Table})
		}
	}
	return out, nil
}

func nextLinks(r netlink.Route) []int {
	if len(r.MultiPath) == 0 {
		return []int{r.LinkIndex}
	}
	var all []int
	for _, n := range r.MultiPath {
		all = append(all, n.LinkIndex)
	}
	return all
}

// attrs are those that the kernel takes with the creation, so that the link is
// never there without them. The altname cannot be one of them.
func attrs(name string, mac MAC, mtu int, group uint32) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name, a.MTU, a.Group = name, mtu, group
	if mac != (MAC{}) {
		a.HardwareAddr = mac.HardwareAddr()
	}
	return a
}

func (h *host) AddBridge(b addBridge) error {
	return h.addLink(&netlink.Bridge{LinkAttrs: attrs(b.Name, b.MAC, b.MTU, b.Group)}, b.Title)
}

func (h *host) AddVLAN(v addVLAN) error {
	uplink, err := h.Index(v.Uplink)
	if err != nil {
		return err
	}
	a := attrs(v.Name, MAC{}, v.MTU, v.Group)
	a.ParentIndex = uplink
	err = h.addLink(&netlink.Vlan{LinkAttrs: a, VlanId: v.VLAN}, v.Title)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return &MissingError{Feature: "8021q", Reason: "this kernel knows no 802.1Q VLANs"}
	}
	return err
}

// MissingError says that the host lacks something that a network needs.
type MissingError struct {
	Feature string // "8021q", "tun", "iptables", "cls_bpf", "bridge"
	Reason  string
}

func (e *MissingError) Error() string { return e.Reason }

func (h *host) addLink(l netlink.Link, title string) error {
	if err := h.nl.LinkAdd(l); err != nil {
		return err
	}
	return h.addTitle(l, title)
}

func (h *host) addTitle(l netlink.Link, title string) error {
	if err := h.nl.LinkAddAltName(l, title); err != nil {
		return fmt.Errorf("add altname %s: %w", title, err)
	}
	return nil
}

// Index asks as if_nametoindex(3) does, and once more by the index: a link
// answers to its altnames, too.
func (h *host) Index(name string) (int, error) {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return 0, fmt.Errorf("find interface %q: %w", name, err)
	}
	for _, question := range []uint{unix.SIOCGIFINDEX, unix.SIOCGIFNAME} {
		err := unix.IoctlIfreq(h.raw.Socket.GetFd(), question, req)
		if errors.Is(err, unix.ENODEV) || err == nil && req.Name() != name {
			return 0, fmt.Errorf("interface %s is %w", name, errGone)
		}
		if err != nil {
			return 0, fmt.Errorf("find interface %s: %w", name, err)
		}
	}
	return int(req.Uint32()), nil
}

// byName names a link to the library by its index.
func (h *host) byName(name string) (netlink.Link, error) {
	index, err := h.Index(name)
	return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: name, Index: index}}, err
}

// leavingGroup is the link group in which links of a network's group wait to be
// removed together. Networks' groups have the highest bit, so it is nobody's.
func leavingGroup(group uint32) uint32 { return group &^ (1 << 31) }

// DelLinks asks the kernel once for all links, by group, since each request
// waits for a grace period. What else is in the network's group stays.
func (h *host) DelLinks(group uint32, doomed []string) error {
	all, err := retried(h.nl.LinkList)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	leaving := leavingGroup(group)
	var ours []netlink.Link
	var moved bool // one is in the leaving group, by a keeper that died over it
	others := map[uint32]bool{}
	for _, l := range all {
		a := l.Attrs()
		if (a.Group == group || a.Group == leaving) && answersTo(a, doomed) {
			ours = append(ours, l)
			moved = moved || a.Group == leaving
		} else {
			others[a.Group] = true
		}
	}
	switch {
	case len(ours) == 0:
		return errGone
	case len(ours) > 1 && !others[group] && !moved:
		return h.delGroup(group)
	case len(ours) == 1 || others[leaving] || leaving == 0:
		return delEach(ours)
	}
	for _, l := range ours {
		err := h.nl.LinkSetGroup(l, int(leaving))
		if err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("set link group of %s: %w", l.Attrs().Name, err)
		}
	}
	return h.delGroup(leaving)
}

// answersTo tells whether one of names is the link's, or an altname of it.
func answersTo(a *netlink.LinkAttrs, names []string) bool {
	return slices.ContainsFunc(append(a.AltNames, a.Name), func(name string) bool { return slices.Contains(names, name) })
}

// delEach removes links at the same time, each by a socket of its own.
func delEach(links []netlink.Link) error {
	errs := make([]error, len(links))
	var all sync.WaitGroup
	for i, l := range links {
		all.Go(func() {
			if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
				errs[i] = fmt.Errorf("delete %s: %w", l.Attrs().Name, err)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

func (h *host) Enslave(link, bridge string) error {
	l, err := h.byName(link)
	if err != nil {
		return err
	}
	index, err := h.Index(bridge)
	if err != nil {
		return err
	}
	return h.nl.LinkSetMasterByIndex(l, index)
}

func (h *host) SetUp(link string) error {
	l, err := h.byName(link)
	if err != nil {
		return err
	}
	return h.nl.LinkSetUp(l)
}

func (h *host) AddAddress(link string, address netip.Prefix) error {
	l, err := h.byName(link)
	if err != nil {
		return err
	}
	return h.nl.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{
		IP: address.Addr().AsSlice(), Mask: net.CIDRMask(address.Bits(), 32)}})
}

// PinMAC binds a guest's address to its port and switches learning off there.
func (h *host) PinMAC(link string, mac MAC) error {
	l, err := h.byName(link)
	if err != nil {
		return err
	}
	if err := h.nl.LinkSetLearning(l, false); err != nil {
		return fmt.Errorf("switch learning off: %w", err)
	}
	err = h.nl.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, Family: unix.AF_BRIDGE,
		State: netlink.NUD_NOARP | netlink.NUD_REACHABLE, Flags: netlink.NTF_MASTER, HardwareAddr: mac.HardwareAddr()})
	if err != nil {
		return fmt.Errorf("add forwarding entry: %w", err)
	}
	return nil
}

func sysctlPath(key string) string { return filepath.Join("/proc/sys", key) }

func (h *host) Sysctl(key string) (string, error) {
	text, err := os.ReadFile(sysctlPath(key))
	return strings.TrimSpace(string(text)), sysctlError(key, err)
}

func (h *host) SetSysctl(key, value string) error {
	f, err := os.OpenFile(sysctlPath(key), os.O_WRONLY, 0) // no O_CREATE: only what is there
	if err != nil {
		return sysctlError(key, err)
	}
	_, err = f.WriteString(value)
	return sysctlError(key, errors.Join(err, f.Close()))
}

func sysctlError(key string, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
		return fmt.Errorf("sysctl %s is %w", key, errGone)
	}
	return err
}
