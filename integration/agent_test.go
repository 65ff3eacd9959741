package integration

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmrun/vmrun/integration/internal/debian"
	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
)

// background boots the VM of a profile in the background, up to its agent, and
// ends it with the test.
func (h *host) background(t *testing.T, profile, name string) {
	t.Helper()
	vm := h.start(t, h.command(t, "run", "-d", "--wait", "agent", "--wait-timeout", debianPatience.String(), profile))
	vm.within(t, debianPatience)
	if code := vm.exit(t); code != 0 {
		t.Fatalf("vmrun run -d: exit code %d", code)
	}
	t.Cleanup(func() {
		if t.Failed() {
			_, log := h.vmrun(t, "kill", name)
			text, _ := os.ReadFile(filepath.Join(h.dir, "run", "vms", name, "console.log"))
			t.Logf("%s\n%s", log, text)
		}
	})
}

// within waits for the end of a call that may take long.
func (m *machine) within(t *testing.T, limit time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), sandbox.Slowed(limit))
	defer cancel()
	select {
	case <-m.done:
	case <-ctx.Done():
		t.Fatalf("vmrun does not end within %v", limit)
	}
}

// exec runs a command in a guest.
func (h *host) exec(t *testing.T, stdin []byte, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	return h.execWithin(t, patience, stdin, args...)
}

// execWithin is exec for what may take a limit of its own.
func (h *host) execWithin(t *testing.T, limit time.Duration, stdin []byte, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := h.command(t, append([]string{"exec", "--wait", "1m"}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &errs
	if err := h.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	kill := time.AfterFunc(limit, func() { cmd.Process.Kill() })
	defer kill.Stop()
	cmd.Wait() // the exit code says all
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// plantTree makes a folder with files, modes and links.
func plantTree(t *testing.T, dir string) {
	t.Helper()
	script := `mkdir -p sub/empty && echo text >'a b' && printf '#!/bin/sh\necho moved\n' >run && chmod 751 run &&
		head -c 3000000 /dev/urandom >sub/big && chmod 640 sub/big && chmod 750 sub/empty &&
		ln -s ../run sub/link && ln -s /nowhere dangling && touch -d 2001-02-03T04:05:06 run sub`
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// treeOf describes a folder: modes, times, sums, links.
func treeOf(t *testing.T, dir string) string {
	t.Helper()
	cmd := exec.Command("sh", "-c", `find . -mindepth 1 -printf '%P %M %l ' \( -type l -printf '\n' -o -printf '%T@\n' \) | sed 's/\.[0-9]*$//' | sort; find . -type f | sort | xargs -d '\n' sha256sum`)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// What exec and cp promise, with a guest of each agent.
func TestAgents(t *testing.T) {
	beside(t)
	guest := debian.Find(t)
	for _, tt := range []struct {
		name    string
		streams bool // vmrun's own agent
		profile func(t *testing.T) string
	}{
		{"micro", true, func(t *testing.T) string { return micro(t, "sleep 100000 & wait") }},
		{"debian", false, func(*testing.T) string { return guest.Profile() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sandbox.Run(t, func(t *testing.T) {
				feature.Needs(t, bootFeatures...)
				h := newHost(t)
				before := h.state(t)
				h.background(t, writeProfile(t, t.TempDir(), "inside", tt.profile(t)), "inside")
				checkExec(t, h, tt.streams)
				checkCopy(t, h)
				if code, out := h.vmrun(t, "stop", "inside"); code != 0 {
					t.Errorf("stop: %d, %s", code, out)
				}
				h.restored(t, before)
			})
		})
	}
}

func checkExec(t *testing.T, h *host, streams bool) {
	t.Helper()
	if code, out, errs := h.exec(t, nil, "-e", "A=b", "-w", "/tmp", "inside", "--", "sh", "-c", "echo $A; pwd; echo err >&2; exit 7"); code != 7 || out != "b\n/tmp\n" || errs != "err\n" {
		t.Errorf("%d, %q, %q", code, out, errs)
	}
	for script, want := range map[string]int{"kill -9 $$": 137, "true": 0} {
		if code, _, errs := h.exec(t, nil, "inside", "--", "sh", "-c", script); code != want {
			t.Errorf("%s: %d, want %d; %s", script, code, want, errs)
		}
	}
	if code, _, errs := h.exec(t, nil, "inside", "--", "no-such-program"); code != 127 {
		t.Errorf("no such program: %d, %s", code, errs)
	}
	if code, _, _ := h.exec(t, nil, "--timeout", "1s", "inside", "--", "sleep", "1000"); code != 124 {
		t.Errorf("timeout: %d", code)
	}
	size := 1 << 20
	if streams {
		size = 10 << 20
	}
	input := make([]byte, size)
	rand.NewChaCha8([32]byte{}).Read(input)
	if code, out, errs := h.exec(t, input, "inside", "--", "cat"); code != 0 || out != string(input) {
		t.Errorf("cat: %d, %d of %d bytes; %s", code, len(out), len(input), errs)
	}
	crowd := make(chan string, 20)
	for n := range cap(crowd) {
		go func() {
			code, out, errs := h.exec(t, nil, "inside", "--", "sh", "-c", fmt.Sprintf("echo %d; exit %d", n, n))
			if code == n && out == fmt.Sprintln(n) {
				errs = ""
			} else {
				errs = fmt.Sprintf("%d: %d, %q, %q", n, code, out, errs)
			}
			crowd <- errs
		}()
	}
	for range cap(crowd) {
		if wrong := <-crowd; wrong != "" {
			t.Error(wrong)
		}
	}
}

func checkCopy(t *testing.T, h *host) {
	t.Helper()
	dir := t.TempDir()
	from := filepath.Join(dir, "from")
	if err := os.Mkdir(from, 0o755); err != nil {
		t.Fatal(err)
	}
	plantTree(t, from)
	for _, step := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{from, "inside:/tmp/new"}, 0, ""},
		{[]string{from, "inside:/tmp/"}, 0, ""},
		{[]string{from, "inside:/tmp"}, 0, ""}, // over what is there
		{[]string{filepath.Join(from, "run"), "inside:/tmp/from/run2"}, 0, ""},
		{[]string{"inside:/tmp/new", filepath.Join(dir, "back")}, 0, ""},
		{[]string{"inside:/tmp/from", dir + "/back2"}, 0, ""},
		{[]string{"inside:/tmp/from/run2", dir}, 0, ""},
		{[]string{from, "inside:/no/such/folder"}, 1, "(?i)no such file or directory"},
		{[]string{from, "inside:/tmp/from/run2"}, 1, "a file of that name is there"},
		{[]string{filepath.Join(from, "run"), "inside:/tmp/from/sub/empty/../../../new/sub"}, 0, ""},
		{[]string{"inside:/no/such/file", dir}, 1, "(?i)no such file or directory"},
		{[]string{filepath.Join(dir, "nothing"), "inside:/tmp"}, 1, "no such file or directory"},
	} {
		vm := h.start(t, h.command(t, append([]string{"cp", "--wait", "1m"}, step.args...)...))
		code := vm.exit(t)
		if code != step.code || step.says != "" && !strings.Contains(strings.ToLower(vm.output()), strings.TrimPrefix(step.says, "(?i)")) {
			t.Errorf("cp %v: %d, %s", step.args, code, vm.output())
		}
	}
	want := treeOf(t, from)
	if got := treeOf(t, filepath.Join(dir, "back")); got != want {
		t.Errorf("there and back:\n%s\nwant:\n%s", got, want)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "run2")); err != nil || !strings.Contains(string(text), "moved") {
		t.Errorf("a file: %q, %v", text, err)
	}
	if _, out, _ := h.exec(t, nil, "inside", "--", "sh", "-c", "/tmp/from/sub/link; ls -A /tmp /tmp/new/sub"); !strings.HasPrefix(out, "moved\n") || strings.Contains(out, ".vmrun-") || !strings.Contains(out, "run\n") {
		t.Errorf("in the guest: %q", out)
	}
}

// A guest that was saved while its agent was at work is spoken with again, and
// what nobody waits for any more ends in it.
func TestAgentAfterRestore(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, bootFeatures...)
		h := newHost(t)
		h.background(t, writeProfile(t, t.TempDir(), "inside", micro(t, "sleep 100000 & wait")), "inside")
		busy := h.start(t, h.command(t, "exec", "inside", "--", "sh", "-c", "while :; do echo busy; done"))
		busy.expect(t, "busy")
		for _, args := range [][]string{{"snapshot", "save", "inside", "one"}, {"kill", "inside"}, {"snapshot", "restore", "inside", "one"}} {
			if code, out := h.vmrun(t, args...); code != 0 {
				t.Fatalf("%v: %d, %s", args, code, out)
			}
		}
		busy.ends(t, 125)
		if code, out, errs := h.exec(t, nil, "inside", "--", "sh", "-c", "while ps | grep -q '[e]cho busy'; do sleep 0.1; done; echo over"); code != 0 || out != "over\n" {
			t.Errorf("after the restore: %d, %q, %s", code, out, errs)
		}
		if code, out := h.vmrun(t, "kill", "inside"); code != 0 {
			t.Errorf("kill: %d, %s", code, out)
		}
	})
}
