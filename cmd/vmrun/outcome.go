package main

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vmrun/vmrun/profiles"
	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/control"
)

// outcome is how a run ended.
type outcome struct {
	code   int
	by     string // whose code it is: guest, user, vmrun, profile, host or qemu
	reason string // a word that programs can rely on
	vm     string // the VM's name; "": the profile could not be read
	cause  error  // told to people; nil where nothing went wrong
}

// err is the outcome as a command returns it.
func (o outcome) err() error {
	if o.code == 0 && o.cause == nil {
		return nil
	}
	return exitError{o.code, o.cause}
}

// public is the outcome as those are told it who wait for the VM's end.
func (o outcome) public() control.Outcome {
	p := control.Outcome{Code: o.code, By: o.by, Reason: o.reason}
	if o.cause != nil {
		p.Error = o.cause.Error()
	}
	return p
}

// teardownError says that something of a VM is left on the host.
type teardownError struct{ cause error }

func (e teardownError) Error() string { return "undo launch: " + e.cause.Error() }

func (e teardownError) Unwrap() error { return e.cause }

// launchFailure is the outcome where no VM came to run.
func launchFailure(err error) outcome {
	if end, asked := askedOutcome(err); asked {
		return end
	}
	if _, started := errors.AsType[*vm.StartError](err); started {
		return outcome{code: exitQEMU, by: "qemu", reason: "qemu-start", cause: err}
	}
	return outcome{code: exitHost, by: "host", reason: "host", cause: err}
}

// endOutcome is the outcome of a VM that ran; cause is why it was asked to end.
func endOutcome(ending vm.Ending, cause error) outcome {
	if end, asked := askedOutcome(cause); asked {
		return end
	}
	end := outcome{code: ending.ExitCode(), by: "guest", reason: ending.Reason, cause: ending.Err()}
	if end.code == exitQEMU && ending.GuestExit == nil {
		end.by = "qemu"
	}
	if end.reason == "" {
		end.reason = "qemu-died"
	}
	return end
}

// askedOutcome is the outcome of a VM, or of a launch, that was asked to end.
func askedOutcome(cause error) (outcome, bool) {
	if s, ok := errors.AsType[signalError](cause); ok {
		return outcome{code: exitSignal + int(s.signal), by: "vmrun", reason: "signal", cause: s}, true
	}
	if n, ok := errors.AsType[notReadyError](cause); ok {
		return outcome{code: n.code, by: "vmrun", reason: "not-ready", cause: n}, true
	}
	switch {
	case errors.Is(cause, errTimeout):
		return outcome{code: exitTimeout, by: "vmrun", reason: "timeout", cause: errTimeout}, true
	case errors.Is(cause, errEscape):
		return outcome{code: 0, by: "user", reason: "escape"}, true
	}
	return outcome{}, false
}

// nicLines say what a NIC is connected with.
func nicLines(nic vm.NICStatus, forwards []profiles.Forward) []string {
	var lines []string
	if nic.Mode != string(profiles.User) {
		line := fmt.Sprintf("joined network %s (%s)", nic.Network, plural(nic.Members, "member"))
		if nic.IP.IsValid() {
			line += ", address " + nic.IP.String()
		}
		lines = append(lines, line)
	}
	for _, f := range forwards {
		host := netip.AddrPortFrom(f.HostAddr, f.HostPort)
		lines = append(lines, fmt.Sprintf("forwarding %s/%s to port %d of the guest", host, f.Proto, f.GuestPort))
	}
	return lines
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
