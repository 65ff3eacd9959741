// Package sandbox runs a test in a host of its own: fresh network, mount and
// process namespaces, entered by executing the test binary again. Whatever the
// test leaves behind, daemons in sessions of their own included, ends with it.
//
// A test binary that uses the package calls Main first in its TestMain.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmrun/vmrun/integration/internal/feature"
)

// What a re-executed test binary has to do is told by its environment.
const (
	roleVariable     = "VMRUN_SANDBOX"          // one of the roles below; unset: the test as the user started it
	slownessVariable = "VMRUN_SANDBOX_SLOWNESS" // see Slowed
	jobVariable      = "VMRUN_SANDBOX_JOB"      // kernel: file with the job; enter: the mounts
	testVariable     = "VMRUN_SANDBOX_TEST"     // test: the one whose body runs

	roleInit   = "init"   // process 1 of a sandbox
	roleTest   = "test"   // the test itself, inside
	roleKernel = "kernel" // process 1 under another kernel
	roleGuest  = "guest"  // a test started by roleKernel, not yet in a sandbox
	roleEnter  = "enter"  // a command on a second host, see Command
)

// limit is for one test in a sandbox.
var limit = time.Duration(feature.Amount(10, 60)) * time.Minute

// Main does the part of a re-executed process and does not return then. In the
// process that the user started, and in the one that runs a test, it does
// nothing.
func Main() {
	var err error
	switch os.Getenv(roleVariable) {
	case roleInit:
		err = initNamespaces()
	case roleKernel:
		err = initKernel()
	case roleEnter:
		err = enter()
	default:
		return
	}
	fmt.Fprintf(os.Stderr, "sandbox: %v\n", err)
	os.Exit(1)
}

// Run runs body in a sandbox: it has an empty network with the loopback up,
// /run, /sys and /proc of its own, an empty /etc/resolv.conf that it may write,
// and is root there, through a user namespace where the caller is not. Output,
// failure and skip of the inner test become the outer one's. Tests in sandboxes
// run in parallel.
func Run(t *testing.T, body func(t *testing.T)) {
	t.Helper()
	if !inside(t) {
		t.Parallel()
	}
	RunAlone(t, body)
}

// RunAlone is Run while no other test of the package runs: for one that is about
// what the machine can do in a time.
func RunAlone(t *testing.T, body func(t *testing.T)) {
	t.Helper()
	if inside(t) {
		body(t)
		return
	}
	limit := limit
	if os.Getenv(roleVariable) == roleGuest {
		limit = slowLimit - bootTime
	}
	ctx, cancel := context.WithTimeout(t.Context(), remaining(t, limit))
	defer cancel()

	cmd := exec.CommandContext(ctx, "/proc/self/exe", testArgs(t, limit)...)
	cmd.Env = append(os.Environ(), roleVariable+"="+roleInit, testVariable+"="+t.Name())
	cmd.SysProcAttr = namespaces()
	follow(t, cmd)
}

func inside(t *testing.T) bool {
	return os.Getenv(roleVariable) == roleTest && os.Getenv(testVariable) == t.Name()
}

// namespaces are those of a sandbox. When its first process ends, the kernel
// kills all others.
func namespaces() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC,
	}
	if os.Geteuid() != 0 {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	return attr
}

// testArgs selects t alone, with a time limit that fires before the outer one,
// so that a hanging test shows its goroutines.
func testArgs(t *testing.T, limit time.Duration) []string {
	var pattern []string
	for name := range strings.SplitSeq(t.Name(), "/") {
		pattern = append(pattern, "^"+name+"$")
	}
	return []string{
		"-test.run=" + strings.Join(pattern, "/"), "-test.v", "-test.count=1",
		"-test.timeout=" + (remaining(t, limit) - 5*time.Second).String(),
	}
}

// remaining is what t may still take, at most limit.
func remaining(t *testing.T, limit time.Duration) time.Duration {
	if end, ok := t.Deadline(); ok {
		limit = min(limit, time.Until(end)-5*time.Second)
	}
	return max(limit, 10*time.Second)
}

// follow runs cmd, which runs t elsewhere, and gives t its outcome.
func follow(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	out := &verdict{out: t.Output(), name: t.Name()}
	if os.Getenv(roleVariable) == "" {
		out.report = kept.add
	}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = time.Second
	// What runs there ends with this process, however that ends. The kernel looks at
	// the thread (prctl(2), PR_SET_PDEATHSIG), so this goroutine stays on it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGTERM
	err := cmd.Start()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) {
		feature.Missing(t, "sandbox", fmt.Errorf("make namespaces: %w", err))
	}
	if err == nil {
		err = cmd.Wait()
	}
	out.flush()
	if out.err != nil {
		t.Errorf("write report: %v", out.err)
	}
	switch {
	case err != nil || out.failed:
		t.Fatalf("run %s in %s: %v", t.Name(), cmd.Path, err)
	case out.skipped:
		t.Skip("skipped inside")
	case !out.passed:
		t.Fatal("the test did not run to its end")
	}
}
