package uplink

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Facts is what the host has on an interface, and what stands in the way of
// putting it onto a bridge.
type Facts struct {
	State
	Rules []Rule        // policy rules that name it
	Read  time.Duration // the host's uptime when it was looked at

	// Each of these says what is there and what to do about it.
	Manager   string   // the program that would undo whatever is done to it; "": none
	Firewall  []string // rules of the host's firewall that name it, and would match no longer
	Unmovable []string // what could not be put onto another interface unchanged
}

// rtaNHID is RTA_NH_ID of linux/rtnetlink.h.
const rtaNHID = 30

// Inspect looks at an interface that is to become a port of a bridge. Nothing is
// changed.
func Inspect(name, bridge string, index int) (f Facts, err error) {
	f.Read = Uptime()
	if f.State, err = Read(name, index); err != nil {
		return f, err
	}
	if f.Rules, f.Unmovable, err = rulesThatName(name); err != nil {
		return f, err
	}
	for _, find := range []func(string, int, State) ([]string, error){
		routeFaults, addressFaults, settingFaults, linkFaults,
	} {
		faults, err := find(name, index, f.State)
		if err != nil {
			return f, err
		}
		f.Unmovable = append(f.Unmovable, faults...)
	}
	f.Manager = manager("/run", name, index)
	f.Firewall, err = firewallMentions(name, bridge)
	return f, err
}

// maxRoutes keeps the journal's lines, and the time without some of the routes,
// short.
const maxRoutes = 1000

// routeFaults finds routes whose copy would not mean the same.
func routeFaults(name string, index int, s State) ([]string, error) {
	var faults []string
	if len(s.Routes) > maxRoutes {
		faults = append(faults, fmt.Sprintf("%d routes lead through %s: more than %d are not moved", len(s.Routes), name, maxRoutes))
	}
	for _, family := range families {
		messages, err := dump(unix.RTM_GETROUTE, unix.RTM_NEWROUTE, unix.RtMsg{Family: family})
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for i, m := range messages {
			p, err := parseRoute(m)
			if err != nil {
				return nil, err
			}
			if p.automatic() || !p.through(uint32(index)) {
				continue
			}
			if p.has(rtaNHID) {
				faults = append(faults, fmt.Sprintf("route %s uses a nexthop object, which stays with %s: write its gateway into the route", p.text(), name))
			}
			if family == unix.AF_INET && ties(p, messages[i+1:], uint32(index)) {
				faults = append(faults, fmt.Sprintf("route %s has a twin of the same metric over another interface, behind it: give it a metric of its own", p.text()))
			}
		}
	}
	return faults, nil
}

func (p parsed) has(attr uint16) bool {
	for _, a := range p.attrs {
		if kind(a) == attr {
			return true
		}
	}
	return false
}

// ties tells whether a route stands before one of another interface that only
// its place puts behind it: a copy would come last.
func ties(p parsed, behind [][]byte, index uint32) bool {
	for _, m := range behind {
		o, err := parseRoute(m)
		if err == nil && o.dst == p.dst && o.table == p.table && o.metric == p.metric && o.Tos == p.Tos && !o.through(index) {
			return true
		}
	}
	return false
}

// addressFaults finds addresses that only their maker can prolong, or make.
func addressFaults(name string, _ int, s State) ([]string, error) {
	var faults []string
	for _, a := range s.Addresses {
		switch {
		case a.Prefix.Addr().Is4() || a.IsLinkLocal():
		case a.Flags&unix.IFA_F_TEMPORARY != 0:
			faults = append(faults, fmt.Sprintf("%s is a temporary address (RFC 8981), which the kernel makes for %s only: sysctl net.ipv6.conf.%s.use_tempaddr=0, and delete it", a.Prefix, name, name))
		case a.Limited() && a.Origin != fromRouter && a.Flags&unix.IFA_F_MANAGETEMPADDR == 0:
			faults = append(faults, fmt.Sprintf("%s is a DHCPv6 lease, which its client could not renew on a bridge: give %s a static address", a.Prefix, name))
		}
	}
	return faults, nil
}

// settingFaults finds settings of IPv6 that a bridge could not have as well.
func settingFaults(name string, index int, _ State) ([]string, error) {
	var faults []string
	switch setting("ipv6/conf", name, "addr_gen_mode") {
	case "2", "3": // IN6_ADDR_GEN_MODE_STABLE_PRIVACY, …_RANDOM
		faults = append(faults, fmt.Sprintf("IPv6 addresses of %s come from a secret and the card's own address (addr_gen_mode), and a bridge would get others: sysctl net.ipv6.conf.%s.addr_gen_mode=0", name, name))
	}
	// Writing it, for the bridge, would drop other interfaces' routes to routers
	// (rt6_purge_dflt_routers in net/ipv6/route.c).
	if f := setting("ipv6/conf", name, "forwarding"); f != setting("ipv6/conf", "default", "forwarding") {
		faults = append(faults, fmt.Sprintf("net.ipv6.conf.%s.forwarding is %s and differs from net.ipv6.conf.default.forwarding: make them equal", name, f))
	}
	token, err := hasToken(index)
	if token {
		faults = append(faults, fmt.Sprintf("%s has an IPv6 token (ip token), which does not move: give it a static address", name))
	}
	return faults, err
}

func setting(family, link, key string) string {
	text, _ := os.ReadFile(filepath.Join("/proc/sys/net", family, link, key))
	return strings.TrimSpace(string(text))
}

// hasToken tells whether an interface identifier was set for router advertisements
// (IFLA_INET6_TOKEN).
func hasToken(index int) (bool, error) {
	const afSpec, inet6Token = 26, 7
	request := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	header := nl.NewIfInfomsg(unix.AF_UNSPEC)
	header.Index = int32(index)
	request.AddData(header)
	messages, err := request.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil || len(messages) == 0 {
		return false, err
	}
	value := messages[0][unix.SizeofIfInfomsg:]
	for _, wanted := range []uint16{afSpec, unix.AF_INET6, inet6Token} {
		attrs, err := parseAttrs(value)
		if err != nil {
			return false, fmt.Errorf("parse link: %w", err)
		}
		value = nil
		for _, a := range attrs {
			if kind(a) == wanted {
				value = a.Value
			}
		}
	}
	return slices.ContainsFunc(value, func(b byte) bool { return b != 0 }), nil
}

// linkFaults finds interfaces that are built on this one and would lose it.
// VLANs see their frames before a bridge does.
func linkFaults(name string, index int, _ State) ([]string, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var faults []string
	for _, l := range links {
		a, below := l.Attrs(), l.Attrs().ParentIndex
		if v, ok := l.(*netlink.Vxlan); ok {
			below = v.VtepDevIndex
		}
		if below != index || a.Index == index || l.Type() == "vlan" || l.Type() == "veth" || a.NetNsID >= 0 {
			continue
		}
		faults = append(faults, fmt.Sprintf("%s (%s) is built on %s, which a bridge would take from it: remove it first", a.Name, l.Type(), name))
	}
	return faults, nil
}

// manager tells whose interface it is, by what these programs write down for
// others below /run; "" where nobody's.
func manager(run, name string, index int) string {
	text, err := os.ReadFile(filepath.Join(run, "NetworkManager/devices", fmt.Sprint(index)))
	if err == nil && hasLine(text, "managed=true") {
		return fmt.Sprintf("%[1]s is managed by NetworkManager, which would give it its addresses back: have NetworkManager make the bridge (nmcli connection add type bridge) and join that, or take %[1]s from it (nmcli device set %[1]s managed no; for good: unmanaged-devices in NetworkManager.conf)", name)
	}
	text, err = os.ReadFile(filepath.Join(run, "systemd/netif/links", fmt.Sprint(index)))
	if err == nil && slices.ContainsFunc(strings.Split(string(text), "\n"), managedByNetworkd) {
		return fmt.Sprintf("%s is managed by systemd-networkd, which would give it its addresses back: have networkd make the bridge (a .netdev file of Kind=bridge) and join that, or take %s from it for good (Unmanaged=yes in its .network file)", name, name)
	}
	return ""
}

// managedByNetworkd reads a line of a link's state file: networkctl(1) shows it
// as SETUP.
func managedByNetworkd(line string) bool {
	state, ok := strings.CutPrefix(line, "ADMIN_STATE=")
	return ok && state != "unmanaged" && state != "initialized" && state != "linger"
}

func hasLine(text []byte, line string) bool {
	return slices.Contains(strings.Split(string(text), "\n"), line)
}
