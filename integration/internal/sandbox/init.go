package sandbox

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// initNamespaces is process 1 of a sandbox: it makes the mounts, runs the test
// as a child, and reaps whatever is left to it until the child has ended.
func initNamespaces() error {
	if err := mountSandbox(); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	os.Setenv(roleVariable, roleTest)
	code, err := supervise(os.Args, os.Environ())
	if err != nil {
		return err
	}
	os.Exit(code)
	return nil
}

func mountSandbox() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, m := range []struct{ kind, dir, options string }{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"tmpfs", "/run", "mode=755"},
	} {
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, m.options); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	return mountOver("/etc/resolv.conf", "")
}

// mountOver puts a file with the given text in the place of path, for this
// mount namespace alone. Where path is a link into /run, which is ours already,
// the file itself is made there.
func mountOver(path, text string) error {
	if target, err := os.Readlink(path); err == nil {
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(path), target)
		}
		path = target
	}
	if _, err := os.Stat(path); err != nil {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("replace %s: %w", path, err)
		}
		return os.WriteFile(path, []byte(text), 0o644)
	}
	own, err := os.CreateTemp("/run", filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	defer own.Close()
	if _, err := own.WriteString(text); err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	if err := own.Chmod(0o644); err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	if err := unix.Mount(own.Name(), path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	return nil
}

// supervise starts this binary once more with the given arguments, whose first
// is skipped, and reaps every process that ends until the one that it started
// has. The result is that one's exit code, 128+n where signal n ended it.
func supervise(args, env []string) (int, error) {
	cmd := exec.Command("/proc/self/exe", args[1:]...)
	cmd.Args[0] = args[0]
	cmd.Env = env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start test: %w", err)
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case err == unix.EINTR, err == nil && pid != cmd.Process.Pid:
		case err != nil:
			return 0, fmt.Errorf("wait for test: %w", err)
		case status.Signaled():
			return 128 + int(status.Signal()), nil
		default:
			return status.ExitStatus(), nil
		}
	}
}
