package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// How long the host has to announce a port: the names of virtio-serial ports
// arrive some time after their bus. The agent's is looked for while everything
// else begins, and nobody waits for that.
const (
	exitPatience  = 500 * time.Millisecond
	agentPatience = 30 * time.Second
)

// reportExit writes the exit code to the exit port. It is no error if the
// machine has no such port, or nobody listens.
func reportExit(code int) error {
	device, err := findPort(ExitPort, exitPatience)
	if err != nil || device == "" {
		return err
	}
	// A port that nobody listens to would block for ever.
	f, err := os.OpenFile(device, os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open exit port: %w", err)
	}
	_, err = fmt.Fprintf(f, "exit %d\n", code)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write to exit port: %w", err)
	}
	return nil
}

// findPort returns the device of the named virtio-serial port, or "" if it does
// not come within patience.
func findPort(name string, patience time.Duration) (string, error) {
	buses, err := filepath.Glob("/sys/bus/virtio/drivers/virtio_console/virtio*")
	if err != nil || len(buses) == 0 {
		return "", err
	}
	events, err := listenUevents() // a port's name is such news too
	if err != nil {
		return "", err
	}
	defer events.Close()
	if err := events.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	for buf := make([]byte, 8<<10); ; {
		device, err := namedPort(name)
		if device != "" || err != nil {
			return device, err
		}
		_, err = events.Read(buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return "", nil
		case err != nil && !errors.Is(err, unix.ENOBUFS): // some were lost
			return "", fmt.Errorf("wait for port %s: %w", name, err)
		}
	}
}

// namedPort is findPort among the ports that have their name by now.
func namedPort(name string) (string, error) {
	ports, err := filepath.Glob("/sys/class/virtio-ports/*")
	for _, port := range ports {
		text, err := os.ReadFile(filepath.Join(port, "name"))
		if err == nil && strings.TrimSpace(string(text)) == name {
			return filepath.Join("/dev", filepath.Base(port)), nil
		}
	}
	return "", err
}
