package sandbox

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/integration/internal/feature"
)

const (
	umlKernel  = "linux.uml"
	umlModules = "/usr/lib/uml/modules"
	modprobe   = "/sbin/modprobe"
	compiler   = "gcc"        // of preload/xstate.c
	exitMark   = "uml: exit " // how a guest ends its output
)

// umlLimit is limit for User-Mode Linux, which is about seven times slower.
var umlLimit = time.Duration(feature.Amount(20, 120)) * time.Minute

// job is what User-Mode Linux is to run.
type job struct {
	Dir string
	Env []string
}

// Run8021Q is Run on a kernel that has 802.1Q: this one where it does, else
// User-Mode Linux on this machine's own file system, which stays unwritten
// behind an overlay.
func Run8021Q(t *testing.T, body func(t *testing.T)) {
	t.Helper()
	if os.Getenv(roleVariable) != "" || Has8021Q() {
		Run(t, body)
		return
	}
	RunUML(t, body)
}

// RunUML is Run under User-Mode Linux. It needs Debian's packages
// user-mode-linux, kmod, gcc and libc6-dev.
func RunUML(t *testing.T, body func(t *testing.T)) {
	t.Helper()
	if os.Getenv(roleVariable) != "" {
		Run(t, body)
		return
	}
	if raceDetector {
		t.Skip("the race detector does not run under User-Mode Linux")
	}
	t.Parallel()
	if err := umlMissing(); err != nil {
		feature.Missing(t, "uml", err)
	}
	cmd, err := umlCommand(t)
	if err != nil {
		t.Fatal(err)
	}
	follow(t, cmd)
}

func umlMissing() error {
	for _, name := range []string{umlKernel, modprobe, compiler} {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("find User-Mode Linux: %w", err)
		}
	}
	if found, _ := filepath.Glob(umlModules + "/*/kernel"); len(found) == 0 {
		return fmt.Errorf("find User-Mode Linux: no modules below %s", umlModules)
	}
	return nil
}

func umlCommand(t *testing.T) (*exec.Cmd, error) {
	binary, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find test binary: %w", err)
	}
	dir, err := os.Getwd()
	if err != nil {
		return nil, fmt.Errorf("find working folder: %w", err)
	}
	text, err := json.Marshal(job{Dir: dir, Env: os.Environ()})
	if err != nil {
		return nil, fmt.Errorf("write job: %w", err)
	}
	file := filepath.Join(t.TempDir(), "job")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return nil, fmt.Errorf("write job: %w", err)
	}
	preload, err := compilePreload(t)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(t.Context(), remaining(t, umlLimit))
	t.Cleanup(cancel)
	args := []string{
		"mem=2G", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro",
		"con0=null,fd:1", "con=null", "quiet", "loglevel=1", "uml_dir=" + t.TempDir() + "/", "init=" + binary,
		roleVariable + "=" + roleUML, jobVariable + "=" + file, testVariable + "=" + t.Name(), "--",
	}
	cmd := exec.CommandContext(ctx, umlKernel, append(args, testArgs(t, umlLimit)...)...)
	cmd.Env = append(os.Environ(), "LD_PRELOAD="+preload)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it ends its own children then
	return cmd, nil
}

//go:embed preload/xstate.c
var xstate string

// compilePreload makes a library of preload/xstate.c.
func compilePreload(t *testing.T) (path string, err error) {
	path = filepath.Join(t.TempDir(), "xstate.so")
	cmd := exec.Command(compiler, "-O2", "-shared", "-fPIC", "-o", path, "-x", "c", "-")
	cmd.Stdin = strings.NewReader(xstate)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("compile preload/xstate.c: %w: %s", err, out)
	}
	return path, nil
}

// initUML is process 1 of User-Mode Linux.
func initUML() error {
	code, err := runJob(os.Getenv(jobVariable))
	if err != nil {
		fmt.Fprintf(os.Stderr, "sandbox: %v\n", err)
	}
	fmt.Printf("%s%d\n", exitMark, code)
	return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func runJob(file string) (int, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 1, fmt.Errorf("read job: %w", err)
	}
	var j job
	if err := json.Unmarshal(text, &j); err != nil {
		return 1, fmt.Errorf("read job: %w", err)
	}
	if err := errors.Join(rawConsole(), mountGuest()); err != nil {
		return 1, err
	}
	if err := os.Chdir(j.Dir); err != nil {
		return 1, fmt.Errorf("enter folder of the tests: %w", err)
	}
	env := append(j.Env, roleVariable+"="+roleGuest, testVariable+"="+os.Getenv(testVariable))
	return supervise(os.Args, env)
}

// rawConsole keeps the console from turning line ends into two characters.
func rawConsole() error {
	mode, err := unix.IoctlGetTermios(1, unix.TCGETS)
	if err != nil {
		return fmt.Errorf("read console mode: %w", err)
	}
	mode.Oflag &^= unix.OPOST
	if err := unix.IoctlSetTermios(1, unix.TCSETS, mode); err != nil {
		return fmt.Errorf("set console mode: %w", err)
	}
	return nil
}

// mountGuest puts an overlay in memory over the host's file system, which is
// mounted read-only below, and makes that the root. The modules of the running
// kernel get their ordinary place, so that the kernel loads them by itself.
func mountGuest() error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return fmt.Errorf("read kernel version: %w", err)
	}
	version := unix.ByteSliceToString(name.Release[:])
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	for _, dir := range []string{"/run/root", "/run/upper", "/run/work", "/run/modules/lib/modules"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make overlay: %w", err)
		}
	}
	if err := os.Symlink(filepath.Join(umlModules, version), "/run/modules/lib/modules/"+version); err != nil {
		return fmt.Errorf("make overlay: %w", err)
	}
	load := exec.Command(modprobe, "-d", "/run/modules", "overlay")
	if out, err := load.CombinedOutput(); err != nil {
		return fmt.Errorf("load overlay: %w: %s", err, strings.TrimSpace(string(out)))
	}
	if err := unix.Mount("overlay", "/run/root", "overlay", 0, "lowerdir=/,upperdir=/run/upper,workdir=/run/work"); err != nil {
		return fmt.Errorf("mount overlay: %w", err)
	}
	return errors.Join(enterRoot("/run/root"), installModules(version), chooseLegacy())
}

func enterRoot(root string) error {
	for _, m := range []struct{ kind, dir string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/run"},
	} {
		if err := unix.Mount(m.kind, root+m.dir, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	for _, dir := range []string{"/dev/shm", "/dev/pts"} {
		if err := os.MkdirAll(root+dir, 0o755); err != nil {
			return fmt.Errorf("make folder: %w", err)
		}
	}
	if err := unix.Mount("devpts", root+"/dev/pts", "devpts", 0, "ptmxmode=0666"); err != nil {
		return fmt.Errorf("mount /dev/pts: %w", err)
	}
	if err := os.Chdir(root); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave old root: %w", err)
	}
	return nil
}

func installModules(version string) error {
	if err := os.MkdirAll("/lib/modules", 0o755); err != nil {
		return fmt.Errorf("install modules: %w", err)
	}
	if err := os.Symlink(filepath.Join(umlModules, version), "/lib/modules/"+version); err != nil {
		return fmt.Errorf("install modules: %w", err)
	}
	// tun has no link type that would load it, and /dev/net/tun is made by it.
	if out, err := exec.Command(modprobe, "-a", "tun", "8021q", "bridge", "veth").CombinedOutput(); err != nil {
		return fmt.Errorf("load modules: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// chooseLegacy makes the legacy tools the host's iptables, as an administrator
// of such a kernel would: its nftables can't translate addresses.
func chooseLegacy() error {
	for _, name := range []string{"iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"} {
		family, action, _ := strings.Cut(name, "-")
		target := "/usr/sbin/" + strings.TrimSuffix(family+"-legacy-"+action, "-")
		if _, err := os.Stat(target); err != nil {
			continue
		}
		alternative := "/etc/alternatives/" + name
		if err := os.Remove(alternative); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("choose iptables: %w", err)
		}
		if err := os.Symlink(target, alternative); err != nil {
			return fmt.Errorf("choose iptables: %w", err)
		}
	}
	return nil
}

// Has8021Q tells whether this kernel has 802.1Q, by making a sub-interface in a
// network that is thrown away.
func Has8021Q() bool {
	found := false
	done := make(chan struct{})
	go func() { // on a thread that ends with the goroutine, since its network is not ours
		defer close(done)
		if lockAndUnshare() != nil {
			return
		}
		parent := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "probe"}}
		if netlink.LinkAdd(parent) != nil {
			return
		}
		sub := &netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: "probe.1", ParentIndex: parent.Attrs().Index}, VlanId: 1}
		found = netlink.LinkAdd(sub) == nil
	}()
	<-done
	return found
}
