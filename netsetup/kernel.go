package netsetup

import (
	"context"
	"net/netip"
	"os"

	"github.com/vmrun/vmrun/netsetup/firewall"
)

// kernel is the one seam between netsetup and the host. The real one speaks
// netlink, iptables and /proc/sys; the other is a strict fake. A method that
// misses what it shall change or remove returns an error that is errGone.
type kernel interface {
	takeoverKernel

	Links() ([]Link, error)
	// Index is the number of a link.
	Index(link string) (int, error)
	// Routes lists the host's, which lead through links.
	Routes(links []Link) ([]Route, error)

	AddBridge(addBridge) error
	AddVLAN(addVLAN) error
	// OpenTAP creates a TAP and returns one open file per queue. The TAP goes
	// when the last copy of them is closed. The caller closes them.
	OpenTAP(openTAP) ([]*os.File, error)
	// DelLinks removes those of names, or altnames, that exist and are of the
	// group, and leaves alone what is not. errGone when none was there.
	DelLinks(group uint32, names []string) error

	Enslave(link, bridge string) error
	SetUp(link string) error
	AddAddress(link string, address netip.Prefix) error
	Guard(guard) error
	PinMAC(link string, mac MAC) error
	// Guarded tells how many frames guards have dropped, by index of the link.
	Guarded() (map[int]uint64, error)

	Sysctl(key string) (string, error)
	SetSysctl(key, value string) error

	// Libvirt is the daemon that has libvirt's networks, whether it runs or not.
	Libvirt() libvirtd

	// TUN finds out whether TAPs can be opened.
	TUN() error
	// Firewall finds out what can carry rules here. With a wish other than ""
	// only what it takes to choose for it is looked for.
	Firewall(firewall.Wish) (firewall.Facts, error)
	// Filters looks for others' iptables only.
	Filters() ([]firewall.Filter, error)
	AddRules(firewall.Rules) error
	// LostRules returns those of rules that are not as AddRules has left them,
	// and ReplaceRules adds those, whatever is left of them.
	LostRules([]firewall.Rules) ([]firewall.Rules, error)
	ReplaceRules(firewall.Rules) error
	// Refused tells how many packets a network's rules in those backends have
	// kept from passing.
	Refused(network string, backends []firewall.Backend) (firewall.Refused, error)
	DelChains(firewall.Backend, []firewall.Jumped) error
	DelTables(network string) error
	DelTransit(network, link string) error
	// Trusted tells whether firewalld trusts a link; Trust has it do so, and
	// Distrust takes that back. errGone where it does not run.
	Trusted(link string) (bool, error)
	Trust(link string) error
	Distrust(link string) error
	// AwaitFirewalld waits a moment for a firewalld that is making its rules.
	AwaitFirewalld(context.Context)
}
