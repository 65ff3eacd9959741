package guest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// watchPower returns a channel that is closed when somebody asks for the
// machine to end: the host by the ACPI power button, or a process of the guest
// by the signals that busybox's halt, poweroff and reboot send to process 1.
func watchPower() <-chan struct{} {
	asked := make(chan struct{})
	ask := sync.OnceFunc(func() { close(asked) })
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGUSR1, unix.SIGUSR2, unix.SIGTERM, unix.SIGINT)
	go func() {
		<-signals
		ask()
	}()
	devices, err := filepath.Glob("/dev/input/event*")
	if err != nil {
		say("look for the power button: %v", err)
	}
	for _, device := range devices {
		go func() {
			defer powerOffOnPanic()
			if waitForPowerKey(device) {
				ask()
			}
		}()
	}
	return asked
}

// Of linux/input-event-codes.h.
const (
	evKey       = 0x01
	keyPower    = 116
	eventLen    = 24 // struct input_event on 64-bit machines
	eventOffset = 16 // behind its time stamp
)

// waitForPowerKey reads an input device until its power key is pressed. It
// returns false if the device can't be read.
func waitForPowerKey(device string) bool {
	f, err := os.Open(device)
	if err != nil {
		return false
	}
	defer f.Close()
	events := make([]byte, 16*eventLen)
	for {
		n, err := f.Read(events)
		if err != nil {
			return false
		}
		if powerPressed(events[:n]) {
			return true
		}
	}
}

// powerPressed looks for a press of the power key among events.
func powerPressed(events []byte) bool {
	var press []byte
	press = binary.NativeEndian.AppendUint16(press, evKey)
	press = binary.NativeEndian.AppendUint16(press, keyPower)
	press = binary.NativeEndian.AppendUint32(press, 1)
	for ; len(events) >= eventLen; events = events[eventLen:] {
		if bytes.Equal(events[eventOffset:eventLen], press) {
			return true
		}
	}
	return false
}

// powerOff prints the exit code, writes everything to disk, and ends the machine.
func powerOff(code int) {
	say("exit %d", code)
	if err := drain(os.Stdout); err != nil {
		say("drain console: %v", err)
	}
	signalAll(unix.SIGKILL)
	unix.Sync()
	command := unix.LINUX_REBOOT_CMD_POWER_OFF
	if _, err := os.Stat("/sys/firmware/acpi"); err != nil {
		// Without ACPI, as on a microvm, nothing can cut the power and the
		// kernel would halt for ever. QEMU takes a reset for the end.
		command = unix.LINUX_REBOOT_CMD_RESTART
	}
	if err := unix.Reboot(command); err != nil {
		say("power off: %v", err)
	}
}

// drain waits until a terminal has sent all that was written to it.
func drain(f *os.File) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var ioctlErr error
	err = conn.Control(func(fd uintptr) {
		ioctlErr = unix.IoctlSetInt(int(fd), unix.TCSBRK, 1)
	})
	if errors.Is(ioctlErr, syscall.ENOTTY) {
		ioctlErr = nil
	}
	return errors.Join(err, ioctlErr)
}
