package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// kernelGroup is the multicast group of the kernel's own uevents.
const kernelGroup = 1

// listenUevents opens the kernel's news of devices, from now on.
func listenUevents() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("listen for devices: %w", err)
	}
	f := os.NewFile(uintptr(fd), "uevents")
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelGroup}); err != nil {
		return nil, errors.Join(fmt.Errorf("listen for devices: %w", err), f.Close())
	}
	return f, nil
}

// followDevices takes into use what the machine is given while it runs: CPUs are
// brought online, cards beyond the first known ones up. The names that a card's
// network gave go with it.
func followDevices(uevents *os.File, config Config, names *nameFiles, known int) {
	defer powerOffOnPanic()
	buf := make([]byte, 8<<10)
	for {
		n, err := uevents.Read(buf)
		if errors.Is(err, unix.ENOBUFS) {
			continue // some were lost
		}
		if err != nil {
			say("follow devices: %v", err)
			return
		}
		e := parseUevent(buf[:n])
		switch {
		case e["ACTION"] == "remove" && e["SUBSYSTEM"] == "net":
			if err := names.drop(e["INTERFACE"]); err != nil {
				say("%v", err)
			}
		case e["ACTION"] != "add":
		case e["SUBSYSTEM"] == "cpu":
			bringOnline(e["DEVPATH"])
		case e["SUBSYSTEM"] == "net":
			known += startCard(e["INTERFACE"], config, names, known)
		}
	}
}

// parseUevent reads the pairs of a uevent, which are behind a line of its own and
// end with a NUL each.
func parseUevent(text []byte) map[string]string {
	pairs := map[string]string{}
	for word := range strings.SplitSeq(string(text), "\x00") {
		if key, value, ok := strings.Cut(word, "="); ok {
			pairs[key] = value
		}
	}
	return pairs
}

func bringOnline(devpath string) {
	if err := os.WriteFile(filepath.Join("/sys", devpath, "online"), []byte("1"), 0); err != nil {
		say("bring %s online: %v", filepath.Base(devpath), err)
	}
}

// startCard brings a card up, as at the start, and returns how many that are: 0
// where the interface is none, or is one that was there from the start.
func startCard(name string, config Config, names *nameFiles, order int) int {
	link, err := netlink.LinkByName(name)
	if err != nil || !isCard(name) {
		return 0 // it has gone again, or is no card
	}
	if link.Attrs().Flags&unix.IFF_UP != 0 {
		return 0
	}
	n := &nic{link: link, order: order, names: names}
	go func() {
		defer powerOffOnPanic()
		n.start(config.LeaseTimeout)
		if err := names.set(n); err != nil {
			say("%v", err)
		}
	}()
	return 1
}
