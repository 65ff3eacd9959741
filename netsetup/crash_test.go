package netsetup

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func portOf(i int) PortSpec {
	return PortSpec{VM: fmt.Sprintf("vm%d", i), MAC: MAC{0x52, 0x54, 0, 9, 0, byte(i)}, Queues: 1}
}

// keepers lists the pids of living keepers in the test's pid namespace. A child
// that is not yet the program that it will be looks like one.
func keepers(t *testing.T) []int {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	parents := map[int]int{}
	for _, path := range dirs {
		text, _ := os.ReadFile(path)
		stat, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "stat"))
		if args := strings.Split(string(text), "\x00"); len(args) > 1 && args[1] == "keeper" {
			var pid, parent int
			fmt.Sscanf(path, "/proc/%d/", &pid)
			if _, rest, ok := strings.Cut(string(stat), ") "); ok {
				fmt.Sscanf(rest[1:], "%d", &parent)
			}
			parents[pid] = parent
		}
	}
	var pids []int
	for pid, parent := range parents {
		if _, child := parents[parent]; !child {
			pids = append(pids, pid)
		}
	}
	return pids
}

// others lists all processes of the test's pid namespace but itself and those
// that have ended, also one that is not yet the program that it will be.
func others(t *testing.T) []int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, path := range stats {
		text, err := os.ReadFile(path)
		_, state, ok := strings.Cut(string(text), ") ")
		if err != nil || !ok || state[0] == 'Z' || state[0] == 'X' {
			continue
		}
		var pid int
		fmt.Sscanf(path, "/proc/%d/", &pid)
		if pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// kill ends a process and waits until it is gone.
func kill(t *testing.T, pid int) {
	t.Helper()
	awaitEnd(t, pid, syscall.SIGKILL)
}

// halt stops processes and waits until they have stopped: SIGSTOP alone leaves one
// time to act on what happens next. A thread that the kernel can't interrupt stops
// before it runs again.
func halt(t *testing.T, pids ...int) {
	t.Helper()
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	runs := regexp.MustCompile(`\) [^TtDZX] `)
	for _, pid := range pids {
		stopped := func() bool {
			threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
			return !slices.ContainsFunc(threads, func(thread string) bool {
				text, _ := os.ReadFile(thread)
				return runs.Match(text)
			})
		}
		if !within(20*time.Second, stopped) {
			t.Fatalf("%d does not stop", pid)
		}
	}
}

// awaitEnd waits until a process is gone, having sent it a signal (0: none).
func awaitEnd(t *testing.T, pid int, signal syscall.Signal) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // ended
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, signal, nil, 0); err != nil && err != unix.ESRCH {
		t.Fatal(err)
	}
	for {
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000); err != unix.EINTR {
			if err != nil {
				t.Fatal(err)
			}
			return
		}
	}
}

func TestKeeperIsReplaced(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	uplinks(t)
	withEach(t, func(t *testing.T, h Host) {
		hostState(t)
		before := hostState(t)
		ctx := context.Background()
		a, err := Attach(ctx, h, specs()["nat"], portOf(1))
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			pids := keepers(t)
			if len(pids) != 1 {
				t.Fatalf("keepers %v, want one", pids)
			}
			kill(t, pids[0])
			b, err := Attach(ctx, h, specs()["nat"], portOf(2))
			if err != nil {
				t.Fatalf("%v\n%s", err, keeperLogs(h))
			}
			if b.Members() != 2 {
				t.Errorf("%d members after the keeper's death, want 2", b.Members())
			}
			if b.IP() == a.IP() {
				t.Errorf("%s was given twice", b.IP())
			}
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		}
		ip(t, "link", "show", a.Link())
		if err := a.Close(); err != nil {
			t.Errorf("%v\n%s", err, keeperLogs(h))
		}
		leftNothing(t, h, before, hostState)
	})
}

// startMember runs a member in a process of its own until it has its port.
func startMember(t *testing.T, h Host, network string) *exec.Cmd {
	t.Helper()
	return startMemberBy(t, exec.Command(os.Args[0], "member", filepath.Dir(h.Runtime), network, h.Firewall))
}

func startMemberBy(t *testing.T, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	if line != "attached\n" {
		t.Fatalf("member said %q", line)
	}
	return cmd
}

// TestKilled ends members and keepers by SIGKILL in each order.
func TestKilled(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	uplinks(t)
	withEach(t, func(t *testing.T, h Host) {
		hostState(t)
		before := hostState(t)
		for _, network := range []string{"nat", "host-only", "bridge-uplink", "bridge-join"} {
			for _, order := range []string{"member", "keeper member", "member keeper"} {
				t.Run(network+" "+order, func(t *testing.T) {
					m := startMember(t, h, network)
					pids := keepers(t)
					for who := range strings.FieldsSeq(order) {
						if who == "member" {
							m.Process.Kill()
							m.Wait()
							continue
						}
						// The other one's death may have ended it already.
						kill(t, pids[0])
					}
					for pids := others(t); len(pids) > 0; pids = others(t) {
						awaitEnd(t, pids[0], 0) // also of a keeper that adopted
					}
					if _, err := Sweep(context.Background(), h); err != nil {
						t.Error(err)
					}
					leftNothing(t, h, before, hostState)
				})
			}
		}
	})
}

// TestManyAtOnce lets members come to a cold network together, and leave
// together.
func TestManyAtOnce(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	uplinks(t)
	withEach(t, func(t *testing.T, h Host) {
		hostState(t)
		before := hostState(t)
		const n = 30
		var wg sync.WaitGroup
		ports := make([]*Port, n)
		for i := range n {
			wg.Go(func() {
				var err error
				if ports[i], err = Attach(context.Background(), h, specs()["nat"], portOf(i)); err != nil {
					t.Errorf("%d: %v", i, err)
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			t.Fatal(keeperLogs(h))
		}
		if pids := keepers(t); len(pids) != 1 {
			t.Errorf("keepers %v, want one", pids)
		}
		seen := map[string]bool{}
		for _, p := range ports {
			for _, id := range []string{p.IP().String(), p.Link()} {
				if seen[id] {
					t.Errorf("%s was given twice", id)
				}
				seen[id] = true
			}
		}
		for _, p := range ports {
			wg.Go(func() {
				if err := p.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		leftNothing(t, h, before, hostState)
	})
}

// TestRefusals: each leaves the host untouched, the keeper included.
func TestRefusals(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	uplinks(t)
	withEach(t, func(t *testing.T, h Host) {
		hostState(t)
		before := hostState(t)
		taken := specs()["nat"]
		taken.Subnet = taken.Subnet.Masked()
		ip(t, "route", "add", "10.70.0.0/16", "via", "192.0.2.1")
		_, err := Attach(context.Background(), h, taken, testPort())
		if want := "subnet: 10.70.0.0/24 is taken: 10.70.0.0/16 is routed to eth1 (table 254)"; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
		ip(t, "route", "del", "10.70.0.0/16")
		a, err := Attach(context.Background(), h, taken, testPort())
		if err != nil {
			t.Fatal(err)
		}
		other := taken
		other.MTU = 9000
		if _, err := Attach(context.Background(), h, other, portOf(1)); err == nil || !strings.Contains(err.Error(), "mtu (unset there, 9000 here)") {
			t.Errorf("another definition: %v", err)
		}
		if _, err := Attach(context.Background(), h, taken, testPort()); err == nil || !strings.Contains(err.Error(), "a VM web is on the network already") {
			t.Errorf("the same VM twice: %v", err)
		}
		twin := portOf(1)
		twin.MAC = testPort().MAC
		if _, err := Attach(context.Background(), h, taken, twin); err == nil || !strings.Contains(err.Error(), "is on the network already") {
			t.Errorf("the same MAC twice: %v", err)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		leftNothing(t, h, before, hostState)
	})
}

// TestSilentClient: who connects and says nothing does not keep a keeper, and
// the network is there for the next one.
func TestSilentClient(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	uplinks(t)
	withEach(t, func(t *testing.T, h Host) {
		hostState(t)
		before := hostState(t)
		spec := specs()["nat"]
		dir := filepath.Join(netsFolder(h.Runtime), spec.folder())
		if err := os.MkdirAll(dir, 0o711); err != nil {
			t.Fatal(err)
		}
		conn, err := connect(context.Background(), h, dir)
		if err != nil {
			t.Fatal(err)
		}
		pids := keepers(t)
		conn.Close()
		for _, pid := range pids {
			awaitEnd(t, pid, 0)
		}
		p, err := Attach(context.Background(), h, spec, testPort())
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		leftNothing(t, h, before, hostState)
	})
}

// TestSweepBesideNewMembers: sweeps while a killed network comes up again never
// take the new keeper's socket away.
func TestSweepBesideNewMembers(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	uplinks(t)
	withEach(t, func(t *testing.T, h Host) {
		hostState(t)
		before := hostState(t)
		m := startMember(t, h, "nat")
		pids := keepers(t)
		m.Process.Kill()
		m.Wait()
		kill(t, pids[0])
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				if _, err := Sweep(context.Background(), h); err != nil {
					t.Error(err)
				}
				p, err := Attach(context.Background(), h, specs()["nat"], portOf(i))
				if err != nil {
					t.Error(err)
					return
				}
				if err := p.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		leftNothing(t, h, before, hostState)
	})
}
