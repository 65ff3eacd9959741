// Command quickqemu stands in for QEMU where a machine is to be on its network at
// once, and nothing else of it counts: where a real one would be emulated by an
// emulated processor. Its guest is a network namespace whose frames go through
// the TAP that it inherits. The guest asks DHCP for its address, waits until a
// word is written to the FIFO /run/NAME.gate where there is one, and then serves
// HTTP on port 80: / is its name, /fetch?URL what it gets from URL. It hears the
// power button.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	var err error
	switch {
	case len(os.Args) == 4 && os.Args[1] == guestCommand:
		err = serveGuest(os.Args[2], os.Args[3], os.NewFile(3, "tap"))
	case len(os.Args) == 2 && strings.HasSuffix(os.Args[1], "-version"):
		fmt.Println("QEMU emulator version 9.9.9 (stand-in)")
	default:
		err = emulate(os.Args[1:])
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "quickqemu: %v\n", err)
		os.Exit(1)
	}
}

// emulate is the machine of a command line, until QMP ends it.
func emulate(args []string) error {
	qmp, err := inherited(args, "socket,id=qmp,")
	if err != nil {
		return err
	}
	tap, err := inherited(args, "tap,")
	if err != nil {
		return err
	}
	name, mac := option(args, "guest="), option(args, "virtio-net-pci,", "mac=")
	return serveQMP(qmp, func() error { return startGuest(name, mac, tap) })
}

// inherited is the file whose number is in the argument that begins so.
func inherited(args []string, prefix string) (*os.File, error) {
	fd, err := strconv.Atoi(option(args, prefix, "fd="))
	if err != nil {
		return nil, fmt.Errorf("find the file of %q: %w", prefix, err)
	}
	return os.NewFile(uintptr(fd), prefix), nil
}

// option is what follows the keys, up to a comma, in the argument that begins
// with the first of them; "" where there is none.
func option(args []string, keys ...string) string {
	for _, arg := range args {
		if !strings.HasPrefix(arg, keys[0]) {
			continue
		}
		for _, key := range keys {
			_, arg, _ = strings.Cut(arg, key)
		}
		word, _, _ := strings.Cut(arg, ",")
		return word
	}
	return ""
}

// serveQMP answers commands until one ends the machine, or nobody is there any
// more to give one. The guest begins with the first cont.
func serveQMP(qmp *os.File, begin func() error) error {
	const stamp = `"timestamp":{"seconds":1,"microseconds":0}`
	say := func(format string, args ...any) { fmt.Fprintf(qmp, format+"\r\n", args...) }
	end := func(reason string, byGuest bool) {
		say(`{"event":"SHUTDOWN","data":{"guest":%v,"reason":%q},%s}`, byGuest, reason, stamp)
	}
	say(`{"QMP":{"version":{"qemu":{"major":9,"minor":9,"micro":9},"package":"stand-in"},"capabilities":[]}}`)
	begun := false
	for in := json.NewDecoder(qmp); ; {
		var c struct {
			Execute string
			ID      json.RawMessage
		}
		if err := in.Decode(&c); err != nil {
			return nil // vmrun is gone
		}
		say(`{"return":{"running":%v,"status":"running"},"id":%s}`, begun, c.ID)
		switch c.Execute {
		case "cont":
			if begun {
				continue
			}
			if err := begin(); err != nil {
				return err
			}
			begun = true
			say(`{"event":"RESUME",%s}`, stamp)
		case "system_powerdown":
			fmt.Fprintln(os.Stderr, "powered off")
			end("guest-shutdown", true)
			return nil
		case "quit":
			end("host-qmp-quit", false)
			return nil
		}
	}
}

// guestCommand is the guest's process, which is this program in a user and a
// network namespace: QEMU's user is not root.
const guestCommand = "guest"

// startGuest starts the guest, which ends with this process.
func startGuest(name, mac string, tap *os.File) error {
	defer tap.Close()
	cmd := exec.Command("/proc/self/exe", guestCommand, name, mac)
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{tap}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start guest: %w", err)
	}
	go cmd.Wait() // it says on stderr what is wrong
	return nil
}
