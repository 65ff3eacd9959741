package vm

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/profiles"
)

// needs skips the test where a program is missing, and fails it where
// VMRUN_TEST_MUST lists it.
func needs(t *testing.T, feature, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err == nil {
		return path
	}
	lacking(t, feature, err)
	return ""
}

// lacking skips the test for the lack of a feature, or fails it as needs does.
func lacking(t *testing.T, feature string, err error) {
	t.Helper()
	must := strings.Split(os.Getenv("VMRUN_TEST_MUST"), ",")
	if slices.Contains(must, feature) || slices.Contains(must, "all") {
		t.Fatalf("needs %s, as VMRUN_TEST_MUST demands: %v", feature, err)
	}
	t.Skipf("needs %s: %v", feature, err)
}

// realFixture is a machine for the QEMU of this host, with a disk of each kind
// and a port of the host that leads to it.
func realFixture(t *testing.T) (Host, profiles.Profile) {
	t.Helper()
	h, err := DetectHost("/nonexistent/vmrun", append(os.Environ(), "HOME="+t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	h.QEMU, h.QEMUImg = needs(t, "qemu", "qemu-system-x86_64"), needs(t, "qemu-img", "qemu-img")
	dir := t.TempDir()
	h.Dirs = Dirs{Runtime: filepath.Join(dir, "run"), State: filepath.Join(dir, "state"), Cache: filepath.Join(dir, "cache")}
	h.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	var disks []profiles.Disk
	for i, keep := range []bool{false, true} {
		disk := filepath.Join(dir, fmt.Sprintf("disk%d.raw", i))
		if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		disks = append(disks, profiles.Disk{Path: disk, Format: profiles.FormatRaw, Keep: keep})
	}
	return h, profiles.Profile{
		Name: "real", File: filepath.Join(dir, "real.toml"),
		Machine:  profiles.Machine{CPUs: 1, Memory: 32 << 20, Accel: profiles.AccelTCG, Type: profiles.Q35, CPU: "max"},
		Disks:    disks,
		NICs:     []profiles.NIC{{Network: "user", Queues: 1, Forward: []profiles.Forward{freePort(t)}}},
		Networks: map[string]profiles.Network{"user": {Name: "user", Mode: profiles.User}},
	}
}

// A real QEMU accepts what we tell it, has the descriptors of the plan and no
// others of ours, reserves the ports, and ends in order.
func TestRealQEMU(t *testing.T) {
	for _, machine := range []profiles.MachineType{profiles.Q35, profiles.PC, profiles.MicroVM} {
		t.Run(string(machine), func(t *testing.T) {
			h, p := realFixture(t)
			p.Machine.Type = machine
			plan, err := NewPlan(&p, h)
			if err != nil {
				t.Fatal(err)
			}
			i, err := Launch(t.Context(), plan, h, Options{Paused: true})
			if err != nil {
				t.Fatal(err)
			}
			checkRealQEMU(t, i, p)
			if err := i.Stop(t.Context(), time.Hour); err != nil {
				t.Error(err)
			}
			if e := wait(t, i); e.Reason != HostQuit || e.ExitCode() != 0 {
				t.Errorf("ended as %+v", e)
			}
			if err := errors.Join(i.Close(), checkPort(p.NICs[0].Forward[0])); err != nil {
				t.Error(err)
			}
		})
	}
}

func checkRealQEMU(t *testing.T, i *Instance, p profiles.Profile) {
	t.Helper()
	var status struct{ Status string }
	if err := i.QMP().Run(t.Context(), "query-status", nil, &status); err != nil || status.Status != "prelaunch" {
		t.Errorf("status is %q, %v", status.Status, err)
	}
	forward := p.NICs[0].Forward[0]
	conn, err := net.Dial("tcp", netip.AddrPortFrom(forward.HostAddr, forward.HostPort).String())
	if err != nil {
		t.Fatalf("QEMU does not listen: %v", err)
	}
	conn.Close()
	want := []string{"disk0.raw", "disk1.raw", "overlay"}
	if got := openRegular(t, i.PID()); !slices.Equal(got, want) {
		t.Errorf("QEMU's files are %v, want %v", got, want)
	}
}

// openRegular names the files with a path that a process has open.
func openRegular(t *testing.T, pid int) []string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		switch {
		case err != nil || !filepath.IsAbs(target) || target == os.DevNull:
		case strings.HasSuffix(target, " (deleted)"):
			names = append(names, "overlay")
		default:
			names = append(names, filepath.Base(target))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// As another user, QEMU gets what that user could not open, and no more rights.
func TestRealQEMUAsUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root starts processes of other users")
	}
	h, p := realFixture(t)
	h.User = User{Name: "somebody", UID: 4711, GID: 4711, Groups: []uint32{4712}}
	secret := filepath.Join(t.TempDir(), "vmlinuz")
	if err := os.WriteFile(secret, make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	p.Boot = profiles.Boot{Kernel: secret}
	plan, err := NewPlan(&p, h)
	if err != nil {
		t.Fatal(err)
	}
	i, err := Launch(t.Context(), plan, h, Options{Paused: true})
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", i.PID()))
	for _, want := range []string{"Uid:\t4711\t4711\t4711\t4711\n", "Groups:\t4712 \n", "CapEff:\t0000000000000000\n"} {
		if err != nil || !strings.Contains(string(status), want) {
			t.Errorf("QEMU's status (%v) lacks %q:\n%s", err, want, status)
		}
	}
}

// QEMU does not outlive the process that launched it.
func TestParentDeath(t *testing.T) {
	const marker = "VMRUN_TEST_PARENT_DEATH"
	if os.Getenv(marker) != "" {
		i := newFixture(t, "serve").launch(t)
		fmt.Printf("\npid %d\n", i.PID())
		select {}
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestParentDeath$")
	cmd.Env = append(os.Environ(), marker+"=1", "TMPDIR="+t.TempDir()) // nobody else removes what it makes there
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscanf(out, "\npid %d\n", &pid); err != nil {
		t.Fatal(err)
	}
	qemu, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(qemu)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	ended := []unix.PollFd{{Fd: int32(qemu), Events: unix.POLLIN}}
	if n, err := unix.Poll(ended, 5000); n != 1 || err != nil {
		t.Errorf("QEMU is still there after 5 s (%v)", err)
	}
}
