package netsetup

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain lets the test binary stand for vmrun where netsetup re-executes it
// as a keeper.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "keeper" {
		if err := keep(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) > 1 && os.Args[1] == "member" {
		beMember(os.Args[2], os.Args[3])
	}
	os.Exit(m.Run())
}

func keep(args []string) error {
	flags := map[string]string{}
	for i := 0; i+1 < len(args); i += 2 {
		flags[strings.TrimPrefix(args[i], "--")] = args[i+1]
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	return Keep(context.Background(), Host{Runtime: flags["runtime"], State: flags["state"], Log: log}, flags["network"])
}

// beMember joins a network, says so and waits to be killed.
func beMember(dir, name string) {
	h := Host{Executable: os.Args[0], Runtime: filepath.Join(dir, "run"), State: filepath.Join(dir, "state")}
	if _, err := Attach(context.Background(), h, specs()[name], testPort()); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("attached")
	select {}
}

const inside = "VMRUN_TEST_INSIDE"

// inNamespaces runs the calling test again, alone, as pid 1 of network, mount
// and process namespaces of its own: nothing of the host can be touched, and
// nothing outlives it. It returns true in there.
func inNamespaces(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inside) == t.Name() {
		setUpNamespaces(t)
		return true
	}
	if os.Geteuid() != 0 || unix.Access("/dev/net/tun", unix.R_OK|unix.W_OK) != nil {
		skip(t, "root", "needs root and /dev/net/tun")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC, Pdeathsig: unix.SIGKILL}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
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
