package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/integration/internal/feature"
)

const (
	modprobe = "/sbin/modprobe"
	exitMark = "kernel: exit " // how a guest ends its output
)

// job is what another kernel is to run.
type job struct {
	Dir      string // working folder of the tests
	Env      []string
	Slowness int    // see Slowed
	Modules  string // the folder that holds one with the kernel's version for a name
	Legacy   bool   // whether iptables is to be the legacy one
}

// slowLimit is limit under another kernel, all of which are slower.
var slowLimit = time.Duration(feature.Amount(20, 120)) * time.Minute

// bootTime is of that for the kernel's start.
const bootTime = time.Minute

// Run8021Q is Run on a kernel that has 802.1Q: this one where it does, else
// User-Mode Linux.
func Run8021Q(t *testing.T, body func(t *testing.T)) {
	t.Helper()
	if os.Getenv(roleVariable) != "" || Has8021Q() {
		Run(t, body)
		return
	}
	RunUML(t, body)
}

// Run8021QNFT is Run8021Q on a kernel whose nftables can do all that this one's
// can: User-Mode Linux's can't translate addresses.
func Run8021QNFT(t *testing.T, body func(t *testing.T)) {
	t.Helper()
	if os.Getenv(roleVariable) != "" || Has8021Q() {
		Run(t, body)
		return
	}
	RunQEMU(t, body)
}

// kernel is one that tests can run under besides this machine's, on its file
// system, which stays unwritten behind an overlay.
type kernel struct {
	name    string // as a feature
	missing func() error
	command func(ctx context.Context, t *testing.T, binary string) (*exec.Cmd, error) // starts it; its first process is the binary
}

// run is Run under the kernel.
func (k kernel) run(t *testing.T, body func(t *testing.T)) {
	t.Helper()
	if os.Getenv(roleVariable) != "" {
		Run(t, body)
		return
	}
	t.Parallel()
	if err := k.missing(); err != nil {
		feature.Missing(t, k.name, err)
	}
	runtime.LockOSThread() // as in follow, for what command starts
	defer runtime.UnlockOSThread()
	binary, err := os.Executable()
	if err != nil {
		t.Fatalf("find test binary: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), remaining(t, slowLimit))
	defer cancel()
	cmd, err := k.command(ctx, t, binary)
	if err != nil {
		t.Fatal(err)
	}
	follow(t, cmd)
}

// bootWords completes the job by this process and returns the words of a kernel's
// command line that make its first process, whose arguments begin with args, do it.
func bootWords(t *testing.T, j job, args ...string) (words []string, err error) {
	if j.Dir, err = os.Getwd(); err != nil {
		return nil, fmt.Errorf("find working folder: %w", err)
	}
	j.Env = os.Environ()
	text, err := json.Marshal(j)
	if err != nil {
		return nil, fmt.Errorf("write job: %w", err)
	}
	file := filepath.Join(t.TempDir(), "job")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return nil, fmt.Errorf("write job: %w", err)
	}
	words = []string{
		"quiet", "loglevel=1",
		roleVariable + "=" + roleKernel, jobVariable + "=" + file, testVariable + "=" + t.Name(), "--",
	}
	return slices.Concat(words, args, testArgs(t, slowLimit-bootTime)), nil
}

// Slowed is a limit, or what it is where everything takes longer.
func Slowed(limit time.Duration) time.Duration {
	times, err := strconv.Atoi(os.Getenv(slownessVariable))
	if err != nil {
		return limit
	}
	return limit * time.Duration(times)
}

// initKernel is process 1 under another kernel.
func initKernel() error {
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
	if err := errors.Join(rawConsole(), mountGuest(j)); err != nil {
		return 1, err
	}
	if err := os.Chdir(j.Dir); err != nil {
		return 1, fmt.Errorf("enter folder of the tests: %w", err)
	}
	env := append(j.Env, roleVariable+"="+roleGuest, testVariable+"="+os.Getenv(testVariable),
		slownessVariable+"="+strconv.Itoa(j.Slowness))
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
func mountGuest(j job) error {
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
	if err := os.Symlink(filepath.Join(j.Modules, version), "/run/modules/lib/modules/"+version); err != nil {
		return fmt.Errorf("make overlay: %w", err)
	}
	load := exec.Command(modprobe, "-d", "/run/modules", "overlay")
	if out, err := load.CombinedOutput(); err != nil {
		return fmt.Errorf("load overlay: %w: %s", err, strings.TrimSpace(string(out)))
	}
	if err := unix.Mount("overlay", "/run/root", "overlay", 0, "lowerdir=/,upperdir=/run/upper,workdir=/run/work"); err != nil {
		return fmt.Errorf("mount overlay: %w", err)
	}
	if err := errors.Join(enterRoot("/run/root"), installModules(filepath.Join(j.Modules, version))); err != nil || !j.Legacy {
		return err
	}
	return chooseLegacy()
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

func installModules(dir string) error {
	if err := os.MkdirAll("/lib/modules", 0o755); err != nil {
		return fmt.Errorf("install modules: %w", err)
	}
	// They are there where the kernel is the machine's own as well.
	if err := os.Symlink(dir, filepath.Join("/lib/modules", filepath.Base(dir))); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("install modules: %w", err)
	}
	// tun has no link type that would load it, and /dev/net/tun is made by it.
	if out, err := exec.Command(modprobe, "-a", "tun", "8021q", "bridge", "veth").CombinedOutput(); err != nil {
		return fmt.Errorf("load modules: %w: %s", err, strings.TrimSpace(string(out)))
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
