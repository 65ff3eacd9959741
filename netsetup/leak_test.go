package netsetup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// cycles is how often the tests for leaks do what must not leave anything.
func cycles() int {
	if long() {
		return 1000
	}
	return 30
}

// goroutinesPipe is where a keeper of the tests says how many goroutines it has.
const goroutinesPipe = "/run/goroutines"

// tellGoroutines says so at each SIGUSR1, which keepers else ignore.
func tellGoroutines() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGUSR1)
	for range signals {
		pipe, err := os.OpenFile(goroutinesPipe, os.O_WRONLY, 0)
		if err != nil {
			continue // nobody has asked
		}
		fmt.Fprintln(pipe, runtime.NumGoroutine())
		pipe.Close()
	}
}

// goroutines are how many this process or a keeper has.
func goroutines(t *testing.T, pid int) (n int) {
	t.Helper()
	if pid == os.Getpid() {
		return runtime.NumGoroutine()
	}
	if err := unix.Mkfifo(goroutinesPipe, 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
		t.Fatal(err)
	}
	pipe, err := os.OpenFile(goroutinesPipe, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	if err := unix.Kill(pid, unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	pipe.SetReadDeadline(time.Now().Add(patience))
	if _, err := fmt.Fscanln(pipe, &n); err != nil {
		t.Fatalf("ask keeper %d for its goroutines: %v", pid, err)
	}
	return n
}

// belongings are what a process has and what the kernel keeps, as counts.
func belongings(t *testing.T, pid int) map[string]int {
	t.Helper()
	runtime.GC() // what finalizers close
	counts := map[string]int{"goroutines": goroutines(t, pid), "processes": len(others(t))}
	for name, pattern := range map[string]string{
		"open files": fmt.Sprintf("/proc/%d/fd/*", pid),
		"links":      "/sys/class/net/*",
		"settings":   "/proc/sys/net/ipv4/conf/*",
	} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		counts[name] = len(found)
	}
	for _, file := range []string{"packet", "unix", "netlink", "tcp", "udp", "raw", "route", "fib_trie", "dev_mcast", "ptype"} {
		text, err := os.ReadFile("/proc/net/" + file)
		if err != nil {
			t.Fatal(err)
		}
		counts["/proc/net/"+file] = strings.Count(string(text), "\n")
	}
	for name, command := range map[string]string{
		"rules":   "nft list ruleset; iptables-legacy-save 2>/dev/null",
		"filters": "for l in /sys/class/net/*; do tc filter show dev ${l##*/} ingress; tc qdisc show dev ${l##*/}; done",
		"fdb":     "bridge fdb show",
	} {
		out, err := exec.Command("sh", "-c", command+"; true").Output()
		if err != nil {
			t.Fatal(err)
		}
		counts[name] = strings.Count(string(out), "\n")
	}
	return counts
}

// TestLeaks: a process that attaches and detaches again and again, or whose
// keeper is killed again and again, the keeper that it does so with, and a
// network that comes and goes each time, have in the end what they had in the
// beginning, and so has the kernel.
func TestLeaks(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	// Links take their IPv6 addresses when they please.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	uplinks(t)
	h := testHost(t)
	h.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	once := func(i int) {
		p, err := Attach(context.Background(), h, specs()["nat"], portOf(i%7))
		if err != nil {
			t.Fatalf("cycle %d: %v\n%s", i, err, keeperLogs(h))
		}
		if err := p.Close(); err != nil {
			t.Fatalf("cycle %d: %v\n%s", i, err, keeperLogs(h))
		}
	}
	t.Run("network", func(t *testing.T) { isFlat(t, os.Getpid, once) })
	stays, err := Attach(context.Background(), h, specs()["nat"], testPort())
	if err != nil {
		t.Fatal(err)
	}
	t.Run("port", func(t *testing.T) { isFlat(t, os.Getpid, once) })
	t.Run("port, of the keeper", func(t *testing.T) { isFlat(t, func() int { return keepers(t)[0] }, once) })
	t.Run("keeper killed", func(t *testing.T) {
		isFlat(t, os.Getpid, func(i int) {
			kill(t, keepers(t)[0])
			once(i) // returns when another keeper has answered
		})
	})
	if err := stays.Close(); err != nil {
		t.Error(err)
	}
}

// isFlat does something many times and compares with when it was done a few times.
func isFlat(t *testing.T, of func() int, once func(i int)) {
	t.Helper()
	const warmup = 7
	for i := range warmup {
		once(i)
	}
	before := settled(t, of(), nil)
	for i := range cycles() {
		once(i)
	}
	after := settled(t, of(), before)
	if diff := cmp.Diff(before, after); diff != "" {
		stacks := make([]byte, 1<<20)
		t.Errorf("after %d cycles:\n%s\n%s", cycles(), diff, stacks[:runtime.Stack(stacks, true)])
	}
	t.Logf("after %d cycles: %v", cycles(), after)
}

// settled counts until all is as wanted, or without a wish until nothing
// changes any more: what has ended is reaped and closed a little later, and a
// keeper opens and closes files of its own as it looks after its network.
func settled(t *testing.T, pid int, want map[string]int) map[string]int {
	t.Helper()
	counts, last := belongings(t, pid), want
	within(3*patience, func() bool {
		if maps.Equal(counts, last) {
			return true
		}
		if want == nil {
			last = counts
		}
		counts = belongings(t, pid)
		return false
	})
	return counts
}
