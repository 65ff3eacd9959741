package feature

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// tun opens a TAP, which is gone again with its descriptor.
func tun() error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/net/tun: %w", err)
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("probe%d")
	if err != nil {
		return fmt.Errorf("make tap: %w", err)
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return fmt.Errorf("make tap: %w", err)
	}
	return nil
}

// users tells whether processes can be started as another user.
func users() error {
	text, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return err
	}
	if fields := strings.Fields(string(text)); os.Geteuid() != 0 || len(fields) == 3 && fields[2] == "1" {
		return errors.New("become another user: this user namespace has one user")
	}
	return nil
}

// nextPID tells whether the number of the next process can be chosen (proc(5),
// ns_last_pid).
func nextPID() error {
	f, err := os.OpenFile("/proc/sys/kernel/ns_last_pid", os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("choose process number: %w", err)
	}
	return f.Close()
}
