package vm

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/vmrun/vmrun/netsetup"
)

// What is known of a running machine comes from QEMU, its console, its networks
// and its TAPs.
func TestSymptoms(t *testing.T) {
	f := everything(t, "serve")
	ip := netip.MustParseAddr("10.70.0.12")
	f.options.watch = func(_ string, _ netsetup.MAC, heard *hearing) (func(context.Context) (netip.Addr, error), error) {
		heard.asked.Add(1)
		heard.delivered.Add(2)
		return func(c context.Context) (netip.Addr, error) { <-c.Done(); return netip.Addr{}, c.Err() }, nil
	}
	asked := 0
	f.options.inspect = func(_ context.Context, _ netsetup.Host, name, _ string) (netsetup.Report, error) {
		asked++
		return netsetup.Report{Refused: &netsetup.Refused{FromGuests: 7, ToGuests: 8}, Members: []netsetup.Member{
			{VM: "other", NIC: 0, Sent: netsetup.Traffic{Packets: 99}},
			{VM: f.profile.Name, NIC: 0, IP: ip, Counted: true, Sent: netsetup.Traffic{Packets: 5}, Received: netsetup.Traffic{Packets: 4},
				Guarded: 3, Leased: true, DHCP: &netsetup.Talk{Asked: 2, Answered: 1, Refused: 1}},
		}}, nil
	}
	i := f.launch(t)
	if _, err := i.AwaitAddress(t.Context(), 1); err == nil { // mode user: told when all are watched
		t.Error("in mode user an address was seen")
	}
	got := i.symptoms(t.Context())
	want := []NICSymptoms{
		{Network: "lan", Mode: "nat", Counted: true, Served: true, IP: ip, Sent: 5, Received: 4, Heard: 1, Delivered: 2, Asked: 2, Answered: 1, Refused: 1, Leased: true, Guarded: 3, Rejected: 7, Shut: 8},
		{Network: "user", Mode: "user"},
		{Network: "lan", Mode: "nat", Heard: 1, Delivered: 2},
	}
	if diff := cmp.Diff(want, got.NICs, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got.Status != "running" || got.Ending != nil || !got.Screen || asked != 1 {
		t.Errorf("status %q, ending %v, screen %v, %d questions", got.Status, got.Ending, got.Screen, asked)
	}
}

// A network and a QEMU that do not answer hold nobody up, and what is known
// otherwise is told.
func TestSymptomsInTime(t *testing.T) {
	f := everything(t, "panic")
	f.options.inspect = func(ctx context.Context, _ netsetup.Host, _, _ string) (netsetup.Report, error) {
		<-ctx.Done()
		return netsetup.Report{}, errors.New("no answer")
	}
	i := f.launch(t)
	<-i.Done()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	got := i.symptoms(ctx)
	if got.Ending == nil || got.Ending.Reason != GuestPanic || len(got.Console) == 0 || got.Console[len(got.Console)-1] != "begin" {
		t.Errorf("%+v", got)
	}
}

// The networks of a guest that panicked are there until its launch is undone, and
// those of one that powered off go with it.
func TestPanicKeepsNetworks(t *testing.T) {
	for behaviour, leaves := range map[string]bool{"panic": false, "off": true} {
		f := everything(t, behaviour)
		f.net.left = make(chan struct{}, 2)
		i := f.launch(t)
		<-i.Done()
		if leaves {
			<-f.net.left
		}
		if n := len(f.net.left); n > 0 && !leaves {
			t.Errorf("%s: %d networks were left", behaviour, n)
		}
		if err := i.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestPlainLines(t *testing.T) {
	output := "\x1b[2J\x1b[1;31mred\x1b[0m text\r\n\r\n \x07beep\x1b(B\r\ncut \xff\xfeshort\nprompt: "
	for most, want := range map[int][]string{9: {"red text", " beep", "cut short", "prompt:"}, 1: {"prompt:"}, 0: {}} {
		if diff := cmp.Diff(want, plainLines([]byte(output), most)); diff != "" {
			t.Errorf("%d lines (-want +got):\n%s", most, diff)
		}
	}
}

// Of a machine that is gone its console's log is left.
func TestDiagnoseLog(t *testing.T) {
	f := everything(t, "panic")
	i := f.launch(t)
	<-i.Done()
	if err := i.Close(); err != nil {
		t.Fatal(err)
	}
	if d := DiagnoseLog(f.host, f.profile.Name); len(d.Console) == 0 || d.Console[len(d.Console)-1] != "begin" || len(d.Likely) != 0 {
		t.Errorf("%+v", d)
	}
	if d := DiagnoseLog(f.host, "never-was"); len(d.Console) != 0 {
		t.Errorf("of none: %+v", d)
	}
}
