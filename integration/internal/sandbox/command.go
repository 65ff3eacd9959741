package sandbox

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// entry is what a command on a second host is to find there.
type entry struct {
	MachineID string
	Path      string
}

// Command makes a command of a second host: it will see /sys of the network
// that it is started in, see Namespace.Do, and the given machine-id, 32
// hexadecimal digits.
func Command(t *testing.T, machineID string, path string, args ...string) *exec.Cmd {
	t.Helper()
	full, err := exec.LookPath(path)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(entry{MachineID: machineID, Path: full})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = path
	cmd.Env = append(os.Environ(), roleVariable+"="+roleEnter, jobVariable+"="+string(text))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	return cmd
}

// enter makes the mounts of a second host and becomes the command.
func enter() error {
	var e entry
	if err := json.Unmarshal([]byte(os.Getenv(jobVariable)), &e); err != nil {
		return fmt.Errorf("read job: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	if err := mountOver("/etc/machine-id", e.MachineID+"\n"); err != nil {
		return err
	}
	os.Unsetenv(jobVariable)
	os.Setenv(roleVariable, roleTest)
	return unix.Exec(e.Path, os.Args, os.Environ())
}
