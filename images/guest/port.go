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

// portPatience is how long the host has to announce the exit port: the names of
// virtio-serial ports arrive some time after their bus.
const portPatience = 500 * time.Millisecond

// reportExit writes the exit code to the exit port. It is no error if the
// machine has no such port, or nobody listens.
func reportExit(code int) error {
	device, err := findPort(ExitPort)
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

// findPort returns the device of the named virtio-serial port, or "".
func findPort(name string) (string, error) {
	buses, err := filepath.Glob("/sys/bus/virtio/drivers/virtio_console/virtio*")
	if err != nil || len(buses) == 0 {
		return "", err
	}
	for deadline := time.Now().Add(portPatience); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		ports, err := filepath.Glob("/sys/class/virtio-ports/*")
		if err != nil {
			return "", err
		}
		for _, port := range ports {
			text, err := os.ReadFile(filepath.Join(port, "name"))
			if err == nil && strings.TrimSpace(string(text)) == name {
				return filepath.Join("/dev", filepath.Base(port)), nil
			}
		}
	}
	return "", nil
}
