package vm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/images"
	"github.com/vmrun/vmrun/images/guest/tree"
	"github.com/vmrun/vmrun/profiles"
	"github.com/vmrun/vmrun/vm/agent"
)

// agentPatience is for all that a guest is asked in a test, on a loaded machine.
const agentPatience = 3 * time.Minute

// bootMicro boots a micro guest whose command does nothing until the end.
func bootMicro(t *testing.T) *Instance {
	t.Helper()
	h, p := realFixture(t)
	kernel, err := images.FindKernel("/boot", filepath.Join(os.Getenv("VMRUN_CACHE_DIR"), "kernel", "boot"), "/var/cache/vmrun/kernel/boot")
	if err != nil {
		lacking(t, "kernel", err)
	}
	h.Busybox = needs(t, "busybox", "busybox")
	h.Executable = filepath.Join(t.TempDir(), "init")
	build := exec.Command("go", "build", "-o", h.Executable, "../images/guest/internal/testinit")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build init: %v\n%s", err, out)
	}
	p.Disks, p.NICs = nil, nil
	p.Machine.Memory = 192 << 20
	p.Boot = profiles.Boot{Kernel: kernel, Initrd: profiles.InitrdMicro, Command: []string{"sh", "-c", "echo begun; sleep 100000 & wait"}}
	plan, err := NewPlan(&p, h)
	if err != nil {
		t.Fatal(err)
	}
	i, err := Launch(t.Context(), plan, h, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := i.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if t.Failed() {
			text, _ := io.ReadAll(i.Console())
			t.Logf("console:\n%s", text)
		}
	})
	return i
}

// runs runs a command in a guest and returns what it wrote.
func runs(ctx context.Context, a agent.Agent, stdin string, argv ...string) (stdout, stderr string, status agent.Status, err error) {
	var out, errs strings.Builder
	status, err = a.Run(ctx, agent.Command{Argv: argv, Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &errs})
	return out.String(), errs.String(), status, err
}

// A micro guest is spoken with before its command runs and while it does.
func TestAgentMicro(t *testing.T) {
	i := bootMicro(t)
	ctx, cancel := context.WithTimeout(t.Context(), agentPatience)
	defer cancel()
	if err := i.Agent().Ready(ctx); err != nil {
		t.Fatalf("agent: %v", err)
	}
	for _, test := range []struct {
		name string
		run  func(context.Context, *testing.T, agent.Agent)
	}{
		{"output", agentOutput}, {"endings", agentEndings}, {"input", agentInput}, {"signals", agentSignals},
		{"crowd", agentCrowd}, {"terminal", agentTerminal}, {"left", agentLeft}, {"files", agentFiles}, {"slow", agentSlow},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(ctx, t, i.Agent()) })
	}
	view := i.Console()
	defer context.AfterFunc(ctx, func() { view.Close() })()
	for lines := bufio.NewScanner(view); !strings.Contains(lines.Text(), "begun"); {
		if !lines.Scan() {
			t.Fatal("the guest's command did not begin")
		}
	}
}

func agentOutput(ctx context.Context, t *testing.T, a agent.Agent) {
	var out, errs strings.Builder
	status, err := a.Run(ctx, agent.Command{
		Argv: []string{"sh", "-c", "echo out $A $(pwd); echo err >&2; tty"}, Env: []string{"A=a value"}, Dir: "/tmp", Stdout: &out, Stderr: &errs,
	})
	if err != nil || status != (agent.Status{Code: 1}) || out.String() != "out a value /tmp\nnot a tty\n" || errs.String() != "err\n" {
		t.Errorf("%q, %q, %+v, %v", out.String(), errs.String(), status, err)
	}
}

func agentEndings(ctx context.Context, t *testing.T, a agent.Agent) {
	for script, want := range map[string]agent.Status{"exit 7": {Code: 7}, "kill -9 $$": {Signal: 9}, "true": {}} {
		if _, _, status, err := runs(ctx, a, "", "sh", "-c", script); err != nil || status != want {
			t.Errorf("%s: %+v, %v", script, status, err)
		}
	}
	for name, want := range map[string]int{"no-such-program": 127, "/no/such/program": 127, "/tmp": 126, "/vmrun/guest.json": 126} {
		_, _, _, err := runs(ctx, a, "", name)
		if e, ok := errors.AsType[*agent.RunError](err); !ok || e.Code != want || !strings.Contains(e.Cause, name) {
			t.Errorf("%s: %v, want code %d", name, err, want)
		}
	}
	if _, _, _, err := runs(ctx, a, "", "true"); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func agentInput(ctx context.Context, t *testing.T, a agent.Agent) {
	random := rand.NewChaCha8([32]byte{1})
	sent := make([]byte, 10<<20)
	random.Read(sent)
	started := time.Now()
	var got bytes.Buffer
	status, err := a.Run(ctx, agent.Command{Argv: []string{"cat"}, Stdin: bytes.NewReader(sent), Stdout: &got})
	if err != nil || status.ExitCode() != 0 || !bytes.Equal(sent, got.Bytes()) {
		t.Errorf("%+v, %v, %d of %d bytes", status, err, got.Len(), len(sent))
	}
	t.Logf("10 MiB there and back in %v", time.Since(started))
	// A command that reads nothing, and one that goes on when nobody reads.
	if _, _, status, err := runs(ctx, a, string(sent), "true"); err != nil || status.ExitCode() != 0 {
		t.Errorf("input that nobody reads: %+v, %v", status, err)
	}
	status, err = a.Run(ctx, agent.Command{Argv: []string{"yes"}, Stdout: &fullAfter{left: 1 << 20}})
	if err != nil || status.Signal != int(unix.SIGPIPE) {
		t.Errorf("output that nobody takes: %+v, %v", status, err)
	}
}

// fullAfter takes some bytes, and then no more.
type fullAfter struct{ left int }

func (f *fullAfter) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, errors.New("full")
	}
	return len(p), nil
}

func agentSignals(ctx context.Context, t *testing.T, a agent.Agent) {
	controls := make(chan agent.Control)
	r, w := io.Pipe()
	ended := make(chan error, 1)
	var status agent.Status
	go func() {
		var err error
		// The signal reaches the shell's child as well, which says that it is there.
		status, err = a.Run(ctx, agent.Command{Argv: []string{"sh", "-c", "trap 'echo got; exit 3' TERM; sh -c 'echo ready; exec sleep 1000' & wait"}, Stdout: w, Controls: controls})
		w.Close()
		ended <- err
	}()
	if _, err := io.ReadFull(r, make([]byte, len("ready\n"))); err != nil {
		t.Fatal(err)
	}
	controls <- agent.Control{Signal: int(unix.SIGTERM)}
	rest, err := io.ReadAll(r)
	if err := errors.Join(err, <-ended); err != nil || string(rest) != "got\n" || status.Code != 3 {
		t.Errorf("%q, %+v, %v", rest, status, err)
	}
	// A process that was killed is gone a little later.
	if _, _, status, err := runs(ctx, a, "", "sh", "-c", "while ps | grep -q '[s]leep 1000$'; do sleep 0.1; done"); err != nil || status.Code != 0 {
		t.Errorf("still sleeping: %+v, %v", status, err)
	}
}

// Many commands at once, each with its own output.
func agentCrowd(ctx context.Context, t *testing.T, a agent.Agent) {
	var all sync.WaitGroup
	for n := range 20 {
		all.Go(func() {
			in := strings.Repeat(fmt.Sprintln(n), 20000)
			out, _, status, err := runs(ctx, a, in, "sh", "-c", fmt.Sprintf("cat; exit %d", n))
			if err != nil || status.Code != n || out != in {
				t.Errorf("%d: %+v, %v, %d of %d bytes", n, status, err, len(out), len(in))
			}
		})
	}
	all.Wait()
}

func agentTerminal(ctx context.Context, t *testing.T, a agent.Agent) {
	controls := make(chan agent.Control)
	in, typed := io.Pipe()
	out, w := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		_, err := a.Run(ctx, agent.Command{Argv: []string{"sh"}, TTY: &agent.Size{Rows: 25, Cols: 81}, Stdin: in, Stdout: w, Controls: controls})
		w.Close()
		in.Close()
		ended <- err
	}()
	shell := &terminalReader{t: t, r: out}
	// What is typed is echoed, so the answers must differ from it.
	for _, step := range []struct{ typed, want string }{
		{"tty; stty size\n", "/dev/pts/0\r\n25 81\r\n"},
		// Who is to get the key says that it is there: before, the shell would.
		{"sh -c 'echo sleeps $((1+1)); exec sleep 1000'\n", "sleeps 2\r\n"},
		// The kernel echoes the key only if the shell has not taken the terminal back by then.
		{"\x03", "# "},
		{"echo after $((20+2))\n", "after 22\r\n"},
	} {
		io.WriteString(typed, step.typed)
		shell.expect(step.want)
	}
	controls <- agent.Control{Resize: &agent.Size{Rows: 50, Cols: 132}}
	// Keys and controls don't wait for each other.
	io.WriteString(typed, "until [ \"$(stty size)\" = '50 132' ]; do sleep 0.1; done; echo resized $((20+3))\n")
	shell.expect("resized 23\r\n")
	io.WriteString(typed, "exit 0\n")
	io.Copy(io.Discard, out)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

type terminalReader struct {
	t    *testing.T
	r    io.Reader
	seen string
}

// expect reads until text has come.
func (r *terminalReader) expect(text string) {
	r.t.Helper()
	buf := make([]byte, 4096)
	for !strings.Contains(r.seen, text) {
		n, err := r.r.Read(buf)
		r.seen += string(buf[:n])
		if err != nil {
			r.t.Fatalf("wait for %q: %v; so far %q", text, err, r.seen)
		}
	}
	_, r.seen, _ = strings.Cut(r.seen, text)
}

// A command that is given up is hung up; what a command leaves running holds up
// nobody.
func agentLeft(ctx context.Context, t *testing.T, a agent.Agent) {
	giveUp, cancel := context.WithCancelCause(ctx)
	enough := errors.New("enough")
	r, w := io.Pipe()
	go func() {
		io.ReadFull(r, make([]byte, 1))
		cancel(enough)
		io.Copy(io.Discard, r)
	}()
	_, err := a.Run(giveUp, agent.Command{Argv: []string{"sh", "-c", "trap 'touch /tmp/hung-up; exit' HUP; echo; sleep 1000 & wait"}, Stdout: w})
	if !errors.Is(err, enough) {
		t.Errorf("given up: %v", err)
	}
	if _, _, status, err := runs(ctx, a, "", "sh", "-c", "until [ -e /tmp/hung-up ]; do sleep 0.1; done"); err != nil || status.ExitCode() != 0 {
		t.Errorf("hung up: %+v, %v", status, err)
	}
	out, _, status, err := runs(ctx, a, "", "sh", "-c", "sleep 1000 & echo left")
	if err != nil || status.ExitCode() != 0 || out != "left\n" {
		t.Errorf("a process that is left: %q, %+v, %v", out, status, err)
	}
}

func agentFiles(ctx context.Context, t *testing.T, a agent.Agent) {
	dir := t.TempDir()
	from := filepath.Join(dir, "from")
	err := errors.Join(os.MkdirAll(filepath.Join(from, "sub", "empty"), 0o750),
		os.WriteFile(filepath.Join(from, "run"), []byte("#!/bin/sh\necho moved\n"), 0o755),
		os.WriteFile(filepath.Join(from, "sub", "big"), bytes.Repeat([]byte("0123456789abcdef"), 1<<17), 0o640),
		os.Symlink("../run", filepath.Join(from, "sub", "link")))
	if err != nil {
		t.Fatal(err)
	}
	put := func(target string) error {
		r, w := io.Pipe()
		go func() { w.CloseWithError(tree.Pack(w, from)) }()
		return a.Put(ctx, target, "from", r)
	}
	if err := put("/tmp/to"); err != nil {
		t.Fatal(err)
	}
	if out, _, _, err := runs(ctx, a, "", "sh", "-c", "cd /tmp/to && sub/link && stat -c '%A %s %n' sub/* && ls -A /tmp | grep vmrun"); err != nil ||
		out != "moved\n-rw-r----- 2097152 sub/big\ndrwxr-x--- 40 sub/empty\nlrwxrwxrwx 6 sub/link\n" {
		t.Errorf("in the guest: %q, %v", out, err)
	}
	back := filepath.Join(dir, "back")
	var size int64
	r, w := io.Pipe()
	go func() {
		w.CloseWithError(a.Get(ctx, "/tmp/to", func(n int64) { size = n }, w))
	}()
	if err := tree.Unpack(r, back, "to"); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("diff", "-r", "--no-dereference", from, back).CombinedOutput(); err != nil || size < 2<<20 {
		t.Errorf("size %d, %v: %s", size, err, out)
	}
	if err := put("/no/such/folder"); err == nil || !strings.Contains(err.Error(), "no such file or directory") {
		t.Errorf("into no folder: %v", err)
	}
	if err := a.Get(ctx, "/no/such/file", nil, io.Discard); err == nil || !strings.Contains(err.Error(), "no such file or directory") {
		t.Errorf("no file: %v", err)
	}
	// A source that breaks off leaves nothing.
	if err := a.Put(ctx, "/tmp/broken", "x", strings.NewReader("not a tar archive")); err == nil {
		t.Error("garbage was taken")
	}
	if out, _, _, err := runs(ctx, a, "", "ls", "-A", "/tmp"); err != nil || strings.Contains(out, "broken") || strings.Contains(out, ".vmrun") {
		t.Errorf("left in the guest: %q, %v", out, err)
	}
}

// Who takes no output holds up nobody else.
func agentSlow(ctx context.Context, t *testing.T, a agent.Agent) {
	slow, cancel := context.WithCancel(ctx)
	defer cancel()
	w := blocked{make(chan struct{}), make(chan struct{})}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		a.Run(slow, agent.Command{Argv: []string{"yes"}, Stdout: w})
	}()
	select {
	case <-w.begun: // the first bytes have come, and are not taken
	case <-ended:
		t.Fatal("a command that goes on for ever has ended")
	}
	for range 10 {
		if _, _, _, err := runs(ctx, a, "", "true"); err != nil {
			t.Fatal(err)
		}
	}
	started := time.Now()
	for range 20 {
		runs(ctx, a, "", "true")
	}
	t.Logf("exec true: %v", time.Since(started)/20)
	cancel()
	close(w.end)
	<-ended
}

// blocked blocks each write.
type blocked struct{ begun, end chan struct{} }

func (b blocked) Write(p []byte) (int, error) {
	close(b.begun)
	<-b.end
	return 0, errors.New("closed")
}
