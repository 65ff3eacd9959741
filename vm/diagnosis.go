package vm

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"sync"

	"github.com/vmrun/vmrun/profiles"
)

// Symptoms are what is known of a machine whose boot did not come as far as was
// wanted.
type Symptoms struct {
	Status  string        `json:"status,omitempty"` // QEMU's word for the machine's state; "": it does not answer
	Ending  *Ending       `json:"ending,omitempty"` // nil: the machine runs
	Console []string      `json:"console"`          // its last lines, oldest first
	Screen  bool          `json:"screen,omitempty"` // there may be more on its screen
	NICs    []NICSymptoms `json:"nics,omitempty"`
}

// NICSymptoms are what was seen of a card from outside. What concerns DHCP is
// known only where vmrun gives the addresses.
type NICSymptoms struct {
	Network   string        `json:"network"`
	Mode      profiles.Mode `json:"mode"`
	Counted   bool          `json:"counted"`     // the network could be asked; else only seen and heard are known
	Served    bool          `json:"served"`      // vmrun gives the addresses
	IP        netip.Addr    `json:"ip,omitzero"` // that was reserved
	Sent      uint64        `json:"sent"`        // frames by the guest
	Received  uint64        `json:"received"`    // frames by the guest
	Heard     int           `json:"heard"`       // DHCP messages of the guest, in front of the bridge
	Asked     int           `json:"asked"`       // those that came through to the server
	Answered  int           `json:"answered"`    // those that were answered
	Delivered int           `json:"delivered"`   // answers that came through to the guest, behind the bridge
	Refused   int           `json:"refused"`     // those that were answered by a refusal
	Leased    bool          `json:"leased"`      // it has taken its address
	Seen      bool          `json:"seen"`        // it was seen to use an address
	Guarded   uint64        `json:"guarded"`     // frames of the guest that had a VLAN tag or another MAC, and were dropped
	Rejected  uint64        `json:"rejected"`    // packets of the network's guests that the host's firewall dropped, by the network's rules
	Shut      uint64        `json:"shut"`        // packets to the network's guests that it dropped
}

// Likely tells what most likely is wrong, the likeliest first; nothing where there
// is no sign.
func (s Symptoms) Likely() []string {
	var causes []string
	causes = append(causes, s.ofEnding()...)
	causes = append(causes, s.ofConsole()...)
	if s.Ending == nil && s.Status == "paused" {
		causes = append(causes, "the machine is paused: vmrun resume lets it go on")
	}
	for i, n := range s.NICs {
		if cause := n.likely(); cause != "" {
			causes = append(causes, fmt.Sprintf("nic%d on %s: %s", i, n.Network, cause))
		}
	}
	return causes
}

func (s Symptoms) ofEnding() []string {
	switch {
	case s.Ending == nil && s.Status == "":
		return []string{"QEMU does not answer: it may have been stopped by a signal, or wait for a disk"}
	case s.Ending == nil:
		return nil
	}
	if err := s.Ending.Err(); err != nil {
		return []string{err.Error()}
	}
	return nil
}

// pattern is compiled when it is first needed: each start of vmrun would have to
// wait for it else.
func pattern(text string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(text) })
}

// signs are what guests and firmware say on the console when they can't go on.
var signs = []struct {
	text  func() *regexp.Regexp
	cause string
}{
	{pattern(`VFS: Unable to mount root fs|VFS: Cannot open root device|ALERT!.*does not exist`),
		"the kernel did not find its root file system: root= of boot.cmdline, or the driver of the disk (virtio_blk) in its initrd"},
	{pattern(`(?i)no bootable device|boot failed: not a bootable disk|nothing to boot`),
		"the firmware found nothing that it can boot, neither on disks nor on the network"},
	{pattern(`System is deadlocked on memory|Out of memory: Kill|Initramfs unpacking failed: write error|not enough memory`),
		"the guest ran out of memory: machine.memory"},
	{pattern(`Initramfs unpacking failed|invalid magic at start of compressed archive`),
		"the kernel could not unpack its initrd"},
	{pattern(`No working init found|Failed to execute /init|Run /bin/sh as init process`),
		"there is no program that the kernel could start as init"},
	{pattern(`You are in (emergency|rescue) mode|Give root password for maintenance|\(initramfs\)`),
		"the guest stopped in its emergency shell"},
	{pattern(`grub rescue>|error: no such (device|partition)|GRUB loading.*error`),
		"the boot loader did not find its files"},
	{pattern(`Kernel panic - not syncing`),
		"the guest's kernel gave up"},
	{pattern(`login: *$`),
		"the guest has come as far as its login prompt"},
}

// ofConsole looks for the last sign.
func (s Symptoms) ofConsole() []string {
	if len(s.Console) == 0 && (s.Ending == nil || s.Ending.Err() == nil) {
		cause := "the guest wrote nothing on its console: its kernel may lack console=ttyS0, or is not for this machine"
		if s.Screen {
			cause += "; its screen may show more"
		}
		return []string{cause}
	}
	for i := len(s.Console) - 1; i >= 0; i-- {
		for _, sign := range signs {
			if sign.text().MatchString(s.Console[i]) {
				return []string{fmt.Sprintf("%s (%q)", sign.cause, strings.TrimSpace(s.Console[i]))}
			}
		}
	}
	return nil
}

// likely follows a card's way to its address, to where it stops.
func (n NICSymptoms) likely() string {
	switch {
	case !n.Counted || n.Mode == profiles.User || n.Mode == profiles.Bridge && n.Sent > 0:
		return "" // whoever gives the addresses there is not vmrun
	case n.Sent == 0:
		return "the guest never sent a frame: it has no driver for the card (virtio_net), or did not bring it up"
	case !n.Served:
		return ""
	case n.Leased:
		return n.afterLease()
	case n.Asked == 0:
		return n.notAsked()
	}
	return n.notLeased()
}

// notAsked is about a guest that the server has not heard.
func (n NICSymptoms) notAsked() string {
	switch {
	case n.Heard > 0:
		return fmt.Sprintf("the guest asked for an address %d times, and the host's rules for bridges dropped it before the network's server heard it", n.Heard)
	case n.Guarded > 0:
		return fmt.Sprintf("the guest never asked for an address, and %s", n.guarded())
	case n.Seen:
		return "the guest uses an address of its own, and never asked for one" + n.rejected()
	}
	return fmt.Sprintf("the guest sent %d frames, but never asked for an address: does its system use DHCP on this card?", n.Sent)
}

// notLeased is about a guest that the server has heard.
func (n NICSymptoms) notLeased() string {
	const patience = 3 // messages after which a guest that was answered has not heard it
	switch {
	case n.Answered == 0:
		return fmt.Sprintf("the guest asked for an address %d times and was not answered: the network's pool may be exhausted (its keeper.log says)", n.Asked)
	case n.Received == 0, n.Heard > 0 && n.Delivered == 0 && n.Answered > 1:
		return fmt.Sprintf("the guest asked for an address and was answered %d times, and no answer came through to it: the host's rules for bridges drop them", n.Answered)
	case n.Refused > 0:
		return fmt.Sprintf("the guest insisted on an address that is not its own, and was refused %d times", n.Refused)
	case n.Answered >= patience:
		return fmt.Sprintf("the guest was offered %s %d times, and did not take it: does another server answer it as well?", n.IP, n.Answered)
	}
	return fmt.Sprintf("the guest is about to take %s", n.IP)
}

// afterLease is about a guest that has taken its address.
func (n NICSymptoms) afterLease() string {
	switch {
	case n.Guarded > 0:
		return fmt.Sprintf("the guest has its address %s, and %s", n.IP, n.guarded())
	case !n.Seen:
		return fmt.Sprintf("the guest has its address %s, and has not been heard of since%s", n.IP, n.rejected())
	}
	return fmt.Sprintf("the guest has its address %s and is reached: what was waited for does not listen, or is not yet there%s", n.IP, n.rejected())
}

// rejected goes on with what the rules of the network have dropped, which know no
// single guest.
func (n NICSymptoms) rejected() string {
	if n.Rejected+n.Shut == 0 {
		return ""
	}
	return fmt.Sprintf("; the host's firewall dropped %d packets of the network's guests and %d to them, as its mode and host_access want it",
		n.Rejected, n.Shut)
}

func (n NICSymptoms) guarded() string {
	return fmt.Sprintf("%d of its frames were dropped, as they had a VLAN tag or another MAC than its card", n.Guarded)
}
