package netsetup

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets the test binary stand for vmrun where netsetup re-executes it
// as a keeper.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "keeper":
			end(keep(os.Args[2:]))
		case "deadman":
			end(beDeadman(os.Args[2:]))
		case "takeover-and-back":
			end(takeOverAndBack(os.Args[2], os.Args[3], os.Args[4]))
		case "holder":
			end(keepHold(os.Args[2:]))
		case "puppet":
			bePuppet()
		case "way":
			end(tellWay(os.Args[2], os.Args[3]))
		case "sweep":
			end(sweepAndTell(os.Args[2]))
		case "member":
			beMember(os.Args[2], os.Args[3], os.Args[4])
		}
	}
	os.Exit(m.Run())
}

// end ends the process without what -race does then, which takes a second.
func end(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		unix.Exit(1)
	}
	unix.Exit(0)
}

func flagsOf(args []string) map[string]string {
	flags := map[string]string{}
	for i := 0; i+1 < len(args); i += 2 {
		flags[strings.TrimPrefix(args[i], "--")] = args[i+1]
	}
	return flags
}

func keepHold(args []string) error {
	h, _ := daemonHost(args)
	return KeepHold(context.Background(), h)
}

func keep(args []string) error {
	go tellGoroutines()
	h, network := daemonHost(args)
	return Keep(context.Background(), h, network)
}

func beDeadman(args []string) error {
	h, network := daemonHost(args)
	return Deadman(context.Background(), h, network, os.Stdin, os.Stdout)
}

func daemonHost(args []string) (h Host, network string) {
	flags := flagsOf(args)
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	return Host{Executable: os.Args[0], Runtime: flags["runtime"], State: flags["state"], Firewall: flags["firewall"], Log: log}, flags["network"]
}

// beMember joins a network, says so and waits to be killed.
func beMember(dir, name, firewall string) {
	h := Host{Executable: os.Args[0], Runtime: filepath.Join(dir, "run"), State: filepath.Join(dir, "state"), Firewall: firewall}
	spec, ok := specs()[name]
	if !ok {
		spec = takeoverSpec()
	}
	if _, err := Attach(context.Background(), h, spec, testPort()); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("attached")
	select {}
}

// tellWay prints whether a place is gone, as seen from here.
func tellWay(network, processes string) error {
	p := place{}
	_, err := fmt.Sscan(network+" "+processes, &p.Net, &p.PID)
	way, gone := p.way()
	fmt.Printf("%q %v", way, gone)
	return err
}

// sweepAndTell sweeps the networks below a folder and prints what it did.
func sweepAndTell(dir string) error {
	lines, err := Sweep(context.Background(), Host{Runtime: filepath.Join(dir, "run"), State: filepath.Join(dir, "state")})
	fmt.Println(strings.Join(lines, "\n"))
	return err
}

// long tells whether a test shall do all that it can, as `make soak` asks for,
// and judge times as on a machine that does nothing else.
func long() bool { return os.Getenv("VMRUN_TEST_LONG") != "" }

// rulesLimit is how long rules may be gone that somebody took away.
func rulesLimit() time.Duration {
	if long() {
		return time.Second
	}
	return 10 * time.Second
}

// adoptionLimit is how long a network may be without its keeper.
func adoptionLimit() time.Duration {
	if long() {
		return time.Second
	}
	return 30 * time.Second
}

const inside = "VMRUN_TEST_INSIDE"

// inNamespaces runs the calling test again, alone, as pid 1 of network, mount
// and process namespaces of its own: nothing of the host can be touched, and
// nothing outlives it. It returns true in there. Such tests run in parallel, but for
// the long form, which judges times.
func inNamespaces(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inside) == t.Name() {
		setUpNamespaces(t)
		return true
	}
	if os.Geteuid() != 0 || unix.Access("/dev/net/tun", unix.R_OK|unix.W_OK) != nil {
		skip(t, "root", "needs root and /dev/net/tun")
	}
	if !long() {
		t.Parallel()
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC, Pdeathsig: unix.SIGKILL}
	runtime.LockOSThread() // the signal comes at the end of the thread
	out, err := cmd.CombinedOutput()
	runtime.UnlockOSThread()
	t.Logf("%s", out)
	switch {
	case err != nil:
		t.Error(err)
	case strings.Contains(string(out), "--- SKIP"):
		t.Skip("skipped inside")
	case !strings.Contains(string(out), "--- PASS: "+t.Name()):
		t.Error("the test did not run")
	}
	return false
}

// skip is visible, and a failure where VMRUN_TEST_MUST names the feature.
func skip(t *testing.T, feature, why string) {
	t.Helper()
	must := os.Getenv("VMRUN_TEST_MUST")
	for f := range strings.SplitSeq(must, ",") {
		if f == feature || f == "all" {
			t.Fatalf("%s, and VMRUN_TEST_MUST=%s", why, must)
		}
	}
	t.Skip(why)
}

func setUpNamespaces(t *testing.T) {
	t.Helper()
	mounts := []struct {
		source, target, kind string
		flags                uintptr
	}{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE},
		{"proc", "/proc", "proc", 0},
		{"sysfs", "/sys", "sysfs", 0},
		{"tmpfs", "/run", "tmpfs", 0},
	}
	for _, m := range mounts {
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, ""); err != nil {
			t.Fatalf("mount %s: %v", m.target, err)
		}
	}
	for _, args := range [][]string{{"link", "set", "lo", "up"}} {
		ip(t, args...)
	}
}

func ip(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// use attaches to a network and leaves it.
func use(t *testing.T, h Host, spec Spec) {
	t.Helper()
	p, err := Attach(context.Background(), h, spec, testPort())
	if err != nil {
		t.Fatalf("%v\n%s", err, keeperLogs(h))
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// sweep sweeps all networks.
func sweep(t *testing.T, h Host) {
	t.Helper()
	if _, err := Sweep(context.Background(), h); err != nil {
		t.Error(err)
	}
}
