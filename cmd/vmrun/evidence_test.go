package main

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/vm"
)

// Whose end is asked for, or is the guest's command's own, has not failed to boot.
func TestIsFailedBoot(t *testing.T) {
	exit := 5
	for name, tt := range map[string]struct {
		end  outcome
		want bool
	}{
		"off":                          {endOutcome(vm.Ending{Reason: vm.GuestShutdown}, nil), false},
		"own exit code":                {endOutcome(vm.Ending{Reason: vm.GuestShutdown, GuestExit: &exit}, nil), false},
		"escape":                       {endOutcome(vm.Ending{}, errEscape), false},
		"signal":                       {endOutcome(vm.Ending{}, signalError{unix.SIGTERM}), false},
		"timeout":                      {endOutcome(vm.Ending{Reason: vm.HostQuit}, errTimeout), true},
		"panic":                        {endOutcome(vm.Ending{Reason: vm.GuestPanic}, nil), true},
		"QEMU gone":                    {endOutcome(vm.Ending{QEMU: "signal: killed"}, nil), true},
		"QEMU killed":                  {endOutcome(vm.Ending{Reason: vm.HostSignal}, nil), true},
		"no start":                     {launchFailure(&vm.StartError{Err: errors.New("no")}), true},
		"host":                         {launchFailure(errors.New("no")), false},
		"panic before a command's end": {endOutcome(vm.Ending{Reason: vm.GuestPanic}, nil).ofCommand(), true},
	} {
		if got := isFailedBoot(tt.end); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// What is shown at once is ten lines with the error, whatever there is.
func TestShown(t *testing.T) {
	d := vm.Diagnosis{Likely: []string{"the guest panicked", "a\nb", strings.Repeat("é", 2*shownWidth), "c", "d"},
		Symptoms: vm.Symptoms{Console: []string{"1", "2", "3", "4"}}}
	e := &evidence{plan: &vm.Plan{Name: "web"}, diagnosis: &d}
	causes, console, rest := e.shown(errors.New("the guest panicked"), "out/")
	if len(causes) != shownCauses || causes[0] != "a; b" || causes[2] != "c" || len([]rune(causes[1])) != shownWidth+1 {
		t.Errorf("causes %q", causes)
	}
	if !slices.Equal(console, []string{"2", "3", "4"}) || rest != "out/" {
		t.Errorf("console %q, rest %q", console, rest)
	}
}
