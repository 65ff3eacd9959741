package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// exitPanic is the exit code of a guest whose init panicked.
const exitPanic = 134

// IsInit reports whether this process is a micro guest's init. Being process 1
// is not enough: a container's first process is that too.
func IsInit() bool {
	if os.Getpid() != 1 {
		return false
	}
	_, err := os.Stat(ConfigPath)
	return err == nil
}

// Main is the life of a micro guest, as its process 1: it mounts, loads modules,
// serves the agent's port, brings up every NIC by DHCP, runs the configured command or a shell on the
// console, says how that ended and powers the machine off. It never returns.
func Main() {
	defer powerOffOnPanic()
	os.Exit(run())
}

// run is Main, up to the power off, from which it doesn't return.
func run() int {
	if err := setUp(); err != nil {
		say("%v", err)
	}
	config, err := loadConfig(ConfigPath)
	if err != nil {
		say("%v", err)
	}
	if err := loadModules(config.Modules); err != nil {
		say("%v", err)
	}
	c := newChildren()
	go func() {
		defer powerOffOnPanic()
		c.reap()
	}()
	go func() {
		defer powerOffOnPanic()
		serveAgent(c)
	}()
	power := watchPower()
	if err := configureNICs(config); err != nil {
		say("%v", err)
	}
	code := runCommand(config, c, power)
	if len(config.Command) > 0 {
		if err := reportExit(code); err != nil {
			say("%v", err)
		}
	}
	powerOff(code)
	return code
}

// say prints a line on the console, in one piece.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stdout, "vmrun-guest: "+format+"\n", args...)
}

// powerOffOnPanic ends a guest whose init has a bug; deferred in every goroutine.
// Any other process just dies of it.
func powerOffOnPanic() {
	if p := recover(); p != nil {
		if os.Getpid() != 1 {
			panic(p)
		}
		say("panic: %v\n%s", p, debug.Stack())
		err := reportExit(exitPanic)
		if err != nil {
			say("%v", err)
		}
		powerOff(exitPanic)
	}
}

// mounts are the file systems of the guest, in mounting order.
var mounts = []struct {
	kind, dir, options string
	flags              uintptr
}{
	{"proc", "/proc", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	{"sysfs", "/sys", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	{"devtmpfs", "/dev", "mode=0755", unix.MS_NOSUID},
	{"devpts", "/dev/pts", "mode=0620,gid=5,ptmxmode=0666", unix.MS_NOSUID | unix.MS_NOEXEC},
	{"tmpfs", "/tmp", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV},
	{"tmpfs", "/run", "mode=0755", unix.MS_NOSUID | unix.MS_NODEV},
}

// setUp mounts the file systems and sets what every process inherits.
func setUp() error {
	var errs []error
	for _, m := range mounts {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			errs = append(errs, err)
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, m.flags, m.options); err != nil {
			errs = append(errs, fmt.Errorf("mount %s: %w", m.dir, err))
		}
	}
	for link, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "fd/0", "/dev/stdout": "fd/1", "/dev/stderr": "fd/2",
	} {
		errs = append(errs, os.Symlink(target, link))
	}
	errs = append(errs,
		os.Setenv("PATH", "/bin:/sbin:/usr/bin:/usr/sbin"),
		os.Setenv("HOME", "/"),
		os.Chdir("/"))
	return errors.Join(errs...)
}

// loadModules loads the modules at paths. One that fails does not keep the
// others from being tried.
func loadModules(paths []string) error {
	params, err := kernelParameters()
	errs := []error{err}
	for _, path := range paths {
		if err := loadModule(path, params[parameterModule(filepath.Base(path))]); err != nil {
			errs = append(errs, fmt.Errorf("load module %s: %w", path, err))
		}
	}
	return errors.Join(errs...)
}

// loadModule loads one module. It is fine if it is there already, or if there is
// no hardware for it.
func loadModule(path, params string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), params, 0)
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}
