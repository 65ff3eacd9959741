package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/hoststate"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
)

// restoreLimit is after how long a killed run's leftovers must be gone. 2 s are
// promised; in the short form other tests run beside each.
func restoreLimit() time.Duration {
	limit := 2 * time.Second
	if !feature.Long() {
		limit *= 10
	}
	return sandbox.Slowed(limit)
}

// host is a machine that vmrun runs on.
type host struct {
	*sandbox.Namespace
	machineID string // "": the first host, whose mounts are the test's own
	firewall  string // what carries rules; "": vmrun chooses
	dir       string // holds vmrun's state
}

// newHost is the sandbox itself as a host.
func newHost(t *testing.T) *host {
	t.Helper()
	return (&host{Namespace: sandbox.Current(t), dir: mkdir(t, "/run/first")}).logged(t)
}

// beside lets a test of several sandboxes run in parallel, as those do: others go
// on while its last ones wait. Not in the long form, which judges times.
func beside(t *testing.T) {
	t.Helper()
	if !feature.Long() {
		t.Parallel()
	}
}

// onEachFirewall runs a test on a host whose rules nftables carries, and on one
// where iptables does.
func onEachFirewall(t *testing.T, f func(t *testing.T, h *host)) {
	for _, firewall := range []string{"nftables", "iptables"} {
		t.Run(firewall, func(t *testing.T) {
			sandbox.Run(t, func(t *testing.T) {
				feature.Needs(t, append(bootFeatures, "tun", firewall)...)
				h := newHost(t)
				h.firewall = firewall
				f(t, h)
			})
		})
	}
}

// newSecondHost is a host beside the sandbox's own, with an empty network.
func newSecondHost(t *testing.T) *host {
	t.Helper()
	h := &host{
		Namespace: sandbox.NewNamespace(t),
		machineID: "00112233445566778899aabbccddeeff",
		dir:       mkdir(t, "/run/second"),
	}
	return h.logged(t)
}

// logged shows what the host's daemons wrote down if the test has failed.
func (h *host) logged(t *testing.T) *host {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(h.logs())
		}
	})
	return h
}

func mkdir(t *testing.T, dir string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// command makes a call of vmrun on the host, to be started with start.
func (h *host) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	binary := os.Getenv(binaryVariable)
	cmd := exec.Command(binary, args...)
	if h.machineID != "" {
		cmd = sandbox.Command(t, h.machineID, binary, args...)
	}
	cmd.Env = append(cmd.Environ(),
		"VMRUN_RUNTIME_DIR="+filepath.Join(h.dir, "run"),
		"VMRUN_STATE_DIR="+filepath.Join(h.dir, "state"),
		"VMRUN_CACHE_DIR="+filepath.Join(filepath.Dir(binary), "cache"),
		"VMRUN_FIREWALL="+h.firewall,
	)
	cmd.WaitDelay = 5 * time.Second // then whoever still holds its output is a fault
	return cmd
}

// vmrun calls vmrun on the host and returns its exit code and what it said.
func (h *host) vmrun(t *testing.T, args ...string) (code int, output string) {
	t.Helper()
	m := h.start(t, h.command(t, args...))
	return m.exit(t), m.output()
}

// state is what a host looked like.
type state struct {
	text      string
	processes []string
}

// state takes the host's state, to be compared by restored.
func (h *host) state(t *testing.T) state {
	t.Helper()
	var s state
	err := h.Do(func() (err error) {
		if s.processes, err = hoststate.Processes(); err != nil {
			return err
		}
		s.text, err = hoststate.Snapshot(filepath.Join(h.dir, "run"))
		return err
	})
	if err != nil {
		t.Fatalf("take the host's state: %v", err)
	}
	return s
}

// restored fails the test unless the host is as before, once the processes that
// came since have ended, which they must do in time.
func (h *host) restored(t *testing.T, before state) {
	t.Helper()
	h.gone(t, before)
	same(t, before.text, h.state(t).text)
}

// restoredButFiles is restored for all that is not a file.
func (h *host) restoredButFiles(t *testing.T, before state) {
	t.Helper()
	h.gone(t, before)
	was, _, _ := strings.Cut(before.text, "== files\n")
	is, _, _ := strings.Cut(h.state(t).text, "== files\n")
	same(t, was, is)
}

func same(t *testing.T, before, after string) {
	t.Helper()
	const most = 40
	diff := strings.SplitAfter(hoststate.Diff(before, after), "\n")
	if len(diff) > most {
		diff = append(diff[:most], fmt.Sprintf("… and %d lines more\n", len(diff)-most))
	}
	if text := strings.Join(diff, ""); text != "" {
		t.Errorf("the host is not as before:\n%s", text)
	}
}

// gone fails the test unless the processes that came since have ended in time.
func (h *host) gone(t *testing.T, before state) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), restoreLimit())
	defer cancel()
	if err := hoststate.WaitProcesses(ctx, before.processes); err != nil {
		t.Error(err)
	}
}

// collectGarbage calls gc, which has to succeed.
func (h *host) collectGarbage(t *testing.T) {
	t.Helper()
	if code, out := h.vmrun(t, "gc"); code != 0 {
		t.Errorf("gc ends with %d: %s", code, out)
	}
}

// logs are what vmrun's daemons wrote down on the host.
func (h *host) logs() string {
	files, err := filepath.Glob(filepath.Join(h.dir, "run/nets/*/keeper.log"))
	if err != nil {
		return err.Error()
	}
	var all strings.Builder
	for _, file := range files {
		text, err := os.ReadFile(file)
		fmt.Fprintf(&all, "%s: %v\n%s", file, err, text)
	}
	return all.String()
}

// kill sends a signal to the processes of the sandbox whose command holds one of
// the words, to all of them at once, and fails the test if a word finds none. It
// returns those processes. SIGKILL is killTogether's.
func kill(t *testing.T, signal unix.Signal, words ...string) []hoststate.Process {
	t.Helper()
	running, err := hoststate.Running()
	if err != nil {
		t.Fatal(err)
	}
	var victims []hoststate.Process
	for _, word := range words {
		found := len(victims)
		for _, p := range running {
			if strings.Contains(p.Command, word) {
				victims = append(victims, p)
			}
		}
		if len(victims) == found {
			t.Errorf("no process runs %q: %v", word, running)
		}
	}
	if signal == unix.SIGKILL {
		killTogether(t, victims)
	} else {
		send(t, signal, victims)
	}
	return victims
}

// killTogether kills processes when all have stopped, so that none sees another
// one's end.
func killTogether(t *testing.T, processes []hoststate.Process) {
	t.Helper()
	if len(processes) > 1 {
		send(t, unix.SIGSTOP, processes)
		awaitStop(t, processes)
	}
	send(t, unix.SIGKILL, processes)
}

func send(t *testing.T, signal unix.Signal, processes []hoststate.Process) {
	t.Helper()
	for _, p := range processes {
		// One may have ended of itself.
		if err := unix.Kill(p.PID, signal); err != nil && !errors.Is(err, unix.ESRCH) {
			t.Fatalf("kill %d (%s): %v", p.PID, p.Command, err)
		}
	}
}

// awaitStop waits until processes that were sent SIGSTOP have stopped, or ended.
func awaitStop(t *testing.T, processes []hoststate.Process) {
	t.Helper()
	limit, again := time.After(restoreLimit()), time.NewTicker(time.Millisecond)
	defer again.Stop()
	for _, p := range processes {
		for !p.Stopped() {
			select {
			case <-limit:
				t.Fatalf("%d (%s) does not stop", p.PID, p.Command)
			case <-again.C:
			}
		}
	}
}

// awaitEnd waits until processes have ended, children or not.
func awaitEnd(t *testing.T, processes ...hoststate.Process) {
	t.Helper()
	for _, p := range processes {
		fd, err := unix.PidfdOpen(p.PID, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			t.Fatalf("open process %d: %v", p.PID, err)
		}
		limit := int(restoreLimit().Milliseconds())
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, limit)
		for errors.Is(err, unix.EINTR) {
			n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, limit)
		}
		unix.Close(fd)
		if n == 0 || err != nil {
			t.Errorf("%d (%s) does not end: %v", p.PID, p.Command, err)
		}
	}
}

// killStrangers kills every process that came since, those included that come
// meanwhile, but for those whose command holds one of the words.
func (h *host) killStrangers(t *testing.T, before state, spared ...string) {
	t.Helper()
	for {
		strangers, err := hoststate.Others(before.processes)
		if err != nil {
			t.Fatal(err)
		}
		strangers = slices.DeleteFunc(strangers, func(p hoststate.Process) bool {
			return slices.ContainsFunc(spared, func(word string) bool { return strings.Contains(p.Command, word) })
		})
		if len(strangers) == 0 {
			return
		}
		killTogether(t, strangers)
	}
}
