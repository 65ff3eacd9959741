package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmrun/vmrun/profiles"
	"github.com/vmrun/vmrun/vm/qemu"
)

var steps = []string{"check", "claim", "disks", "boot", "networks", "forwards", "contents", "start", "watch", "restore", "display", "release", "record", "run"}

// everything is a machine that uses all that a launch can acquire.
func everything(t *testing.T, behaviour string) *fixture {
	t.Helper()
	f := newFixture(t, behaviour).micro()
	disk := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	f.profile.Machine.Display = profiles.DisplayVNC
	f.profile.Disks = []profiles.Disk{{Path: disk, Format: profiles.FormatRaw, Keep: true}}
	f.profile.Networks = map[string]profiles.Network{"lan": {Name: "lan", Mode: profiles.NAT}, "user": {Name: "user", Mode: profiles.User}}
	f.profile.NICs = []profiles.NIC{
		{Network: "lan", Queues: 2, Forward: []profiles.Forward{freePort(t)}},
		{Network: "user", Queues: 1, Forward: []profiles.Forward{freePort(t)}},
		{Network: "lan", Queues: 1},
	}
	return f
}

// freePort forwards a port that was free just now.
func freePort(t *testing.T) profiles.Forward {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	addr := l.Addr().(*net.TCPAddr).AddrPort()
	return profiles.Forward{HostAddr: addr.Addr(), HostPort: addr.Port(), GuestPort: 80, Proto: "tcp"}
}

// After a failure at whichever step nothing is left: no process, no open file,
// no port, no name.
func TestLaunchFailsCleanly(t *testing.T) {
	seen := []string{}
	for _, fail := range append(steps, "never") {
		t.Run(fail, func(t *testing.T) {
			f := everything(t, "serve")
			cause := errors.New("injected")
			f.options.before = func(step string) error {
				if fail == "never" {
					seen = append(seen, step)
				}
				if step == fail {
					return cause
				}
				return nil
			}
			checkClean(t, f, func() {
				i, err := Launch(t.Context(), f.plan(t), f.host, f.options)
				if fail == "never" {
					if err = errors.Join(err, i.Close(), i.Close()); err != nil {
						t.Fatal(err)
					}
				} else if !errors.Is(err, cause) {
					t.Fatalf("launch returned %v, want the injected error", err)
				}
			})
		})
	}
	if !slices.Equal(seen, steps) {
		t.Errorf("steps are %v, the test knows %v", seen, steps)
	}
}

// checkClean compares the process and the host before and after something.
func checkClean(t *testing.T, f *fixture, do func()) {
	t.Helper()
	const splice = "pipe:" // Go keeps some to copy between sockets, until it collects garbage
	before := openFiles(splice)
	do()
	if after := openFiles(splice); !slices.Equal(before, after) {
		t.Errorf("open files are %v, were %v", after, before)
	}
	if f.net.open != 0 {
		t.Errorf("%d ports are still attached", f.net.open)
	}
	if children, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/children", os.Getpid())); err == nil && len(children) > 0 {
		t.Errorf("child processes are left: %s", children)
	}
	for _, file := range []string{stateFile, SocketFile} {
		if _, err := os.Stat(filepath.Join(f.host.Dirs.Runtime, "vms/web", file)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left (%v)", file, err)
		}
	}
	if err := f.plan(t).Check(t.Context(), f.host); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	l := &launch{plan: f.plan(t), host: f.host}
	if err := errors.Join(l.claimName(t.Context()), l.undo.run()); err != nil {
		t.Errorf("the name is still taken: %v", err)
	}
}

// What each step itself can find in its way.
func TestLaunchErrors(t *testing.T) {
	for name, test := range map[string]struct {
		behaviour string
		spoil     func(*fixture)
		want      string
	}{
		"dead":      {"dead", func(*fixture) {}, "launch web: start QEMU: exit status 1: qemu: the fake does not work with tcg"},
		"refused":   {"refuse", func(*fixture) {}, "launch web: run cont: GenericError: the fake refuses"},
		"network":   {"serve", func(f *fixture) { f.net.refuse = 2 }, "launch web: the fake refuses"},
		"no exec":   {"serve", func(f *fixture) { f.host.QEMU = "/nonexistent" }, "launch web: start QEMU: fork/exec /nonexistent: no such file or directory"},
		"no IP":     {"serve", func(f *fixture) { f.net.ip = netip.Addr{} }, "does not know the guest's address"},
		"no kernel": {"serve", func(f *fixture) { f.profile.Boot.Kernel = "/nonexistent" }, "launch web: stat /nonexistent: no such file or directory"},
		"bad disk":  {"serve", func(f *fixture) { f.profile.Disks[0].Format = profiles.FormatQCOW2 }, "not a qcow2 image"},
	} {
		t.Run(name, func(t *testing.T) {
			f := everything(t, test.behaviour)
			good := f.profile
			good.Disks = slices.Clone(good.Disks)
			test.spoil(f)
			plan := f.plan(t)
			f.profile = good
			checkClean(t, f, func() {
				_, err := Launch(t.Context(), plan, f.host, f.options)
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("launch returned %v, want %s", err, test.want)
				}
			})
		})
	}
}

func TestPortTaken(t *testing.T) {
	f := everything(t, "serve")
	taken := f.profile.NICs[0].Forward[0]
	l, err := listenTCP(taken)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = Launch(t.Context(), f.plan(t), f.host, f.options)
	lack, ok := errors.AsType[*HostError](err)
	want := fmt.Sprintf("launch web: listen on 127.0.0.1:%d/tcp: address already in use", taken.HostPort)
	if !ok || lack.Need != NeedPort || err.Error() != want {
		t.Errorf("launch returned %v, want %s", err, want)
	}
}

func TestNameTaken(t *testing.T) {
	f := newFixture(t, "serve")
	f.launch(t)
	_, err := Launch(t.Context(), f.plan(t), f.host, f.options)
	lack, ok := errors.AsType[*HostError](err)
	want := fmt.Sprintf(`launch web: claim name: a virtual machine "web" is running (process %d, profile /srv/web.toml)`, os.Getpid())
	if !ok || lack.Need != NeedName || err.Error() != want {
		t.Errorf("launch returned %v, want %s", err, want)
	}
}

// A KVM with which QEMU dies is given up for TCG, and that is said.
func TestFallback(t *testing.T) {
	f := everything(t, "no-kvm")
	f.profile.Machine.Accel = profiles.AccelAuto
	i := f.launch(t)
	if i.Accel() != qemu.TCG {
		t.Errorf("runs with %s, want tcg", i.Accel())
	}
	if log := f.log.String(); !strings.Contains(log, "KVM does not work here") || !strings.Contains(log, "the fake does not work with kvm") {
		t.Errorf("the log says nothing of KVM: %s", log)
	}
	if f.net.attached != 2 {
		t.Errorf("attached %d ports for two attempts with two NICs, want 2", f.net.attached)
	}
}

func TestNoFallback(t *testing.T) {
	for behaviour, accel := range map[string]profiles.Accel{"no-kvm": profiles.AccelKVM, "no-tcg": profiles.AccelTCG, "dead": profiles.AccelAuto} {
		f := newFixture(t, behaviour)
		f.profile.Machine.Accel = accel
		_, err := Launch(t.Context(), f.plan(t), f.host, f.options)
		if _, ok := errors.AsType[*StartError](err); !ok {
			t.Errorf("launch of %s with accel %s returned %v, want a StartError", behaviour, accel, err)
		}
		if strings.Contains(f.log.String(), "KVM") {
			t.Errorf("launch of %s with accel %s blames KVM: %s", behaviour, accel, f.log)
		}
	}
}

// A launch that is given up while QEMU says nothing leaves nothing.
func TestLaunchCancelled(t *testing.T) {
	f := everything(t, "mute")
	cause := errors.New("enough")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, cause)
	defer cancel()
	checkClean(t, f, func() {
		if _, err := Launch(ctx, f.plan(t), f.host, f.options); !errors.Is(err, cause) {
			t.Errorf("launch returned %v, want %v", err, cause)
		}
	})
}

// QEMU inherits what the plan says and nothing else; we keep none of it.
func TestDescriptors(t *testing.T) {
	f := everything(t, "serve")
	i := f.launch(t)
	// console, qmp, exit, agent, two queues, one queue, one disk
	awaitLine(t, i.Console(), "files: 3 4 5 6 7 8 9 10")
	for _, fd := range openFiles() {
		if target, err := os.Readlink("/proc/self/fd/" + fd); err == nil && strings.HasSuffix(target, "disk.raw") {
			t.Errorf("descriptor %s still holds the disk", fd)
		}
	}
}

func TestConsole(t *testing.T) {
	f := newFixture(t, "echo")
	i := f.launch(t)
	first, second := i.Console(), i.Console()
	if _, err := io.WriteString(first, "hello\n"); err != nil {
		t.Fatal(err)
	}
	awaitLine(t, first, "hello")
	awaitLine(t, second, "hello")
	if err := errors.Join(first.Close(), i.Kill()); err != nil {
		t.Fatal(err)
	}
	wait(t, i)
	for _, c := range []*Console{first, second} {
		if n, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("read after the end: %d bytes, %v", n, err)
		}
	}
}

// A guest that writes more than anyone reads neither waits nor loses a byte in
// the log; a late reader is told how much it missed.
func TestConsoleFlood(t *testing.T) {
	f := newFixture(t, "flood")
	i := f.launch(t)
	console := i.Console()
	wait(t, i)
	log, err := os.ReadFile(filepath.Join(f.host.Dirs.Runtime, "vms/web/console.log"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(console)
	if err != nil {
		t.Fatal(err)
	}
	notice, rest, _ := strings.Cut(string(text[2:]), "\r\n")
	if want := fmt.Sprintf("[vmrun: %d bytes skipped]", len(log)-consoleRing); notice != want {
		t.Errorf("the reader is told %q, want %q", notice, want)
	}
	if rest != string(log[len(log)-consoleRing:]) {
		t.Error("what the reader got is not the log's end")
	}
	if lines := strings.Count(string(log), "0123456789abcde\n"); lines != 2*consoleRing/16 {
		t.Errorf("the log has %d lines of %d", lines, 2*consoleRing/16)
	}
}
