package vm

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Reasons for the end of a virtual machine: those of QEMU's SHUTDOWN event
// (QMP reference, ShutdownCause) that occur here, and one of our own.
const (
	GuestShutdown = "guest-shutdown" // the guest powered off
	GuestReset    = "guest-reset"    // the guest rebooted, where that ends it
	GuestPanic    = "guest-panic"    //
	HostQuit      = "host-qmp-quit"  // ended by us, or by another QMP client
	HostSignal    = "host-signal"    // somebody sent QEMU a signal
	Killed        = "killed"         // by Kill, or by Stop as the last resort
)

// Ending tells why and how a virtual machine ended.
type Ending struct {
	Reason    string `json:"reason"`               // "": QEMU ended without one
	GuestExit *int   `json:"guest_exit,omitempty"` // exit code of the micro guest's command
	Stopped   bool   `json:"stopped,omitempty"`    // Stop was called before the guest's command ended
	Killed    bool   `json:"killed,omitempty"`     // Kill was called
	QEMU      string `json:"qemu"`                 // how the process ended, for people
	Log       string `json:"log,omitempty"`        // the end of what QEMU wrote to its standard error
	micro     bool
	silent    bool // nothing came on the console
}

// Exit codes of a run; see ExitCode.
const (
	exitNoReason = 4
	exitPanic    = 5
	exitKilled   = 137
)

// ExitCode is the exit code of a run that ended so: the guest command's own, 0
// for a guest that powered off or was stopped, 5 for a panic, 137 for Kill, and
// 4 for everything that nobody asked for.
func (e Ending) ExitCode() int {
	switch {
	case e.GuestExit != nil && !e.Stopped:
		return *e.GuestExit
	case e.panicked():
		return exitPanic
	case e.Killed:
		return exitKilled
	case e.Stopped, e.Reason == GuestShutdown, e.Reason == GuestReset, e.Reason == HostQuit:
		return 0
	}
	return exitNoReason
}

// panicked tells a guest's panic. The micro guest resets for no other reason,
// and may panic before it can tell.
func (e Ending) panicked() bool {
	return e.Reason == GuestPanic || e.Reason == GuestReset && e.micro && e.GuestExit == nil
}

// Err is nil for an ending in order, whatever the guest's command returned, and
// says otherwise what happened.
func (e Ending) Err() error {
	switch {
	case e.panicked() && e.silent:
		return errors.New("the guest reset before it said anything; it may need more memory")
	case e.panicked():
		return errors.New("the guest panicked")
	case e.Stopped || e.Killed:
		return nil
	case e.Reason == HostSignal:
		return errors.New("QEMU was ended by a signal")
	case e.Reason == "" && e.Log != "":
		return fmt.Errorf("QEMU ended without a reason (%s): %s", e.QEMU, e.Log)
	case e.Reason == "":
		return fmt.Errorf("QEMU ended without a reason (%s)", e.QEMU)
	}
	return nil
}

// readExit reads the micro guest's exit port until the guest is gone, and tells
// the exit code as soon as it is there. The guest writes "exit N" when its
// command has ended.
func readExit(r io.Reader, told func(code int)) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		text, ok := strings.CutPrefix(lines.Text(), "exit ")
		if n, err := strconv.Atoi(text); ok && err == nil && n >= 0 && n <= 255 {
			told(n)
			return
		}
	}
}
