package vm

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/vmrun/vmrun/profiles"
)

func TestLikely(t *testing.T) {
	ip := netip.MustParseAddr("10.70.0.10")
	nat := func(change func(*NICSymptoms)) Symptoms {
		n := NICSymptoms{Network: "lan", Mode: profiles.NAT, Counted: true, Served: true, IP: ip, Sent: 9, Received: 9, Asked: 2, Answered: 2, Leased: true, Seen: true}
		change(&n)
		return Symptoms{Status: "running", Console: []string{"hello"}, NICs: []NICSymptoms{n}}
	}
	console := func(lines ...string) Symptoms { return Symptoms{Status: "running", Console: lines} }
	for name, tt := range map[string]struct {
		symptoms Symptoms
		want     []string // in this order
	}{
		"no sign":          {console("Linux version 6.1", "systemd[1]: Started"), nil},
		"silent":           {console(), []string{"wrote nothing on its console"}},
		"silent, screen":   {Symptoms{Status: "running", Screen: true}, []string{"its screen may show more"}},
		"no answer":        {Symptoms{Console: []string{"x"}}, []string{"QEMU does not answer"}},
		"paused":           {Symptoms{Status: "paused", Console: []string{"x"}}, []string{"vmrun resume"}},
		"panic":            {Symptoms{Ending: &Ending{Reason: GuestPanic}, Console: []string{"Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"}}, []string{"the guest panicked", "did not find its root file system"}},
		"panic, trace":     {Symptoms{Ending: &Ending{Reason: GuestPanic}, Console: []string{"Kernel panic - not syncing: sysrq triggered crash", "Call Trace:", " </TASK>"}}, []string{"the guest panicked", "sysrq triggered crash"}},
		"reset in silence": {Symptoms{Ending: &Ending{Reason: GuestReset, micro: true, silent: true}}, []string{"may need more memory"}},
		"QEMU crashed":     {Symptoms{Ending: &Ending{QEMU: "signal: killed"}, Console: []string{"x"}}, []string{"QEMU ended without a reason (signal: killed)"}},
		"no disk":          {console("SeaBIOS", "Boot failed: not a bootable disk", "No bootable device."), []string{`found nothing that it can boot, neither on disks nor on the network ("No bootable device.")`}},
		"emergency":        {console("[  OK  ] Reached target", "You are in emergency mode. After logging in", "Give root password for maintenance"), []string{"emergency shell"}},
		"login":            {console("Debian GNU/Linux 12 debian ttyS0", "", "debian login: "), []string{"login prompt"}},
		"memory":           {console("Kernel panic - not syncing: System is deadlocked on memory"), []string{"machine.memory"}},

		"no driver": {nat(func(n *NICSymptoms) {
			*n = NICSymptoms{Network: "lan", Mode: profiles.NAT, Counted: true, Served: true}
		}), []string{"nic0 on lan: the guest never sent a frame"}},
		"never asked":     {nat(func(n *NICSymptoms) { n.Asked, n.Answered, n.Leased, n.Seen = 0, 0, false, false }), []string{"never asked for an address: does its system use DHCP"}},
		"foreign":         {nat(func(n *NICSymptoms) { n.Asked, n.Answered, n.Leased, n.Guarded = 0, 0, false, 7 }), []string{"7 of its frames were dropped"}},
		"own address":     {nat(func(n *NICSymptoms) { n.Asked, n.Answered, n.Leased = 0, 0, false }), []string{"uses an address of its own"}},
		"asked, dropped":  {nat(func(n *NICSymptoms) { n.Heard, n.Asked, n.Answered, n.Leased = 4, 0, 0, false }), []string{"asked for an address 4 times, and the host's rules for bridges dropped it"}},
		"unknown":         {nat(func(n *NICSymptoms) { *n = NICSymptoms{Network: "lan", Mode: profiles.NAT} }), nil},
		"restored":        {nat(func(n *NICSymptoms) { n.Asked, n.Answered = 0, 0 }), []string{"does not listen"}},
		"no answers":      {nat(func(n *NICSymptoms) { n.Asked, n.Answered, n.Leased = 5, 0, false }), []string{"asked for an address 5 times and was not answered"}},
		"not heard":       {nat(func(n *NICSymptoms) { n.Received, n.Leased = 0, false }), []string{"no answer came through to it"}},
		"answers dropped": {nat(func(n *NICSymptoms) { n.Heard, n.Leased = 2, false }), []string{"no answer came through to it"}},
		"refused":         {nat(func(n *NICSymptoms) { n.Refused, n.Leased = 2, false }), []string{"was refused 2 times"}},
		"not taken":       {nat(func(n *NICSymptoms) { n.Answered, n.Leased = 4, false }), []string{"did not take it"}},
		"not yet":         {nat(func(n *NICSymptoms) { n.Asked, n.Answered, n.Leased = 1, 1, false }), []string{"is about to take 10.70.0.10"}},
		"dropped since":   {nat(func(n *NICSymptoms) { n.Guarded = 3 }), []string{"3 of its frames were dropped"}},
		"rejected":        {nat(func(n *NICSymptoms) { n.Rejected, n.Shut = 7, 2 }), []string{"is reached: what was waited for does not listen, or is not yet there; the host's firewall dropped 7 packets of the network's guests and 2 to them"}},
		"rejected, alien": {nat(func(n *NICSymptoms) { n.Asked, n.Answered, n.Leased, n.Rejected = 0, 0, false, 7 }), []string{"uses an address of its own, and never asked for one; the host's firewall dropped 7 packets"}},
		"unheard":         {nat(func(n *NICSymptoms) { n.Seen = false }), []string{"not been heard of since"}},
		"all is well":     {nat(func(n *NICSymptoms) {}), []string{"does not listen"}},
		"user":            {nat(func(n *NICSymptoms) { *n = NICSymptoms{Network: "user", Mode: profiles.User} }), nil},
		"LAN":             {nat(func(n *NICSymptoms) { *n = NICSymptoms{Network: "lan", Mode: profiles.Bridge, Counted: true, Sent: 3} }), nil},
		"LAN, silent":     {nat(func(n *NICSymptoms) { *n = NICSymptoms{Network: "lan", Mode: profiles.Bridge, Counted: true} }), []string{"never sent a frame"}},
		"tenant's DHCP":   {nat(func(n *NICSymptoms) { *n = NICSymptoms{Network: "acme", Mode: profiles.VLAN, Counted: true, Sent: 3} }), nil},
	} {
		got := tt.symptoms.Likely()
		if len(got) != len(tt.want) {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
			continue
		}
		for i := range got {
			if !strings.Contains(got[i], tt.want[i]) {
				t.Errorf("%s: %q, want %q", name, got, tt.want)
			}
		}
	}
}
