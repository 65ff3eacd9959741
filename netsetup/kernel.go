package netsetup

import (
	"net/netip"
	"os"
)

// kernel is the one seam between netsetup and the host. The real one speaks
// netlink, iptables and /proc/sys; the other is a strict fake. A method that
// misses what it shall change or remove returns an error that is errGone.
type kernel interface {
	Links() ([]Link, error)
	Routes() ([]Route, error)

	AddBridge(addBridge) error
	AddVLAN(addVLAN) error
	// OpenTAP creates a TAP and returns one open file per queue. The TAP goes
	// when the last copy of them is closed. The caller closes them.
	OpenTAP(openTAP) ([]*os.File, error)
	// DelLinks removes those of names that exist and are of the group, and
	// leaves alone what is not. errGone when none was there.
	DelLinks(group uint32, names []string) error

	Enslave(link, bridge string) error
	SetUp(link string) error
	AddAddress(link string, address netip.Prefix) error
	Guard(guard) error
	PinMAC(link string, mac MAC) error

	Sysctl(key string) (string, error)
	SetSysctl(key, value string) error

	// TUN finds out whether TAPs can be opened.
	TUN() error
	// Backend finds the iptables command that works on this kernel, and
	// whether Docker's chain for others' rules exists.
	Backend() (command string, docker bool, err error)
	AddRules(command string, chains []chain) error
	DelRules(command string, chains []chain) error
}
