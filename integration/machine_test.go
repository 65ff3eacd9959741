package integration

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os/exec"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/vmrun/vmrun/integration/internal/sandbox"
)

// patience is how long a guest may take for any one step.
const patience = 90 * time.Second

// machine is a running call of vmrun, in most cases with a guest in it, whose
// console is the call's input and output.
type machine struct {
	cmd      *exec.Cmd
	stdin    io.WriteCloser
	console  *transcript   // stdout
	messages *transcript   // stderr; on a terminal the same as console
	done     chan struct{} // closed when vmrun has ended
	err      error         // of Wait, after done
}

// run boots the VM of a profile.
func (h *host) run(t *testing.T, profile string, flags ...string) *machine {
	t.Helper()
	args := append([]string{"run"}, flags...)
	return h.start(t, h.command(t, append(args, profile)...))
}

// start starts a call of vmrun. It is killed at the end of the test, and what
// it said is shown if the test failed.
func (h *host) start(t *testing.T, cmd *exec.Cmd) *machine {
	t.Helper()
	m := &machine{cmd: cmd, console: newTranscript(), messages: newTranscript()}
	cmd.Stdout, cmd.Stderr = m.console, m.messages
	var err error
	if m.stdin, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	h.launch(t, m)
	return m
}

// launch starts a machine whose input and output have been seen to.
func (h *host) launch(t *testing.T, m *machine) {
	t.Helper()
	m.done = make(chan struct{})
	if err := h.Do(m.cmd.Start); err != nil {
		t.Fatalf("start vmrun: %v", err)
	}
	go func() {
		m.err = m.cmd.Wait()
		m.console.close()
		m.messages.close()
		close(m.done)
	}()
	t.Cleanup(func() {
		m.cmd.Process.Kill() // it may have ended long ago
		<-m.done
		if t.Failed() {
			t.Logf("%v said:\n%s", m.cmd.Args, m.output())
		}
	})
}

// expect waits until the guest has said something on its console that matches,
// and returns the match and its groups. Each call goes on behind the last one's
// match.
func (m *machine) expect(t *testing.T, pattern string) []string {
	t.Helper()
	return m.console.expect(t, pattern, patience)
}

// awaits is expect for what may take a limit of its own.
func (m *machine) awaits(t *testing.T, pattern string, limit time.Duration) []string {
	t.Helper()
	return m.console.expect(t, pattern, limit)
}

// tells is expect for what vmrun itself tells.
func (m *machine) tells(t *testing.T, pattern string) []string {
	t.Helper()
	return m.messages.expect(t, pattern, patience)
}

// say types a line on the guest's console.
func (m *machine) say(t *testing.T, line string) {
	t.Helper()
	if _, err := io.WriteString(m.stdin, line+"\n"); err != nil {
		t.Fatalf("type %q: %v", line, err)
	}
}

// exit waits for the end of the call and returns its exit code, -1 where a
// signal ended it.
func (m *machine) exit(t *testing.T) int {
	t.Helper()
	select {
	case <-m.done:
	case <-time.After(sandbox.Slowed(patience)):
		t.Fatal("vmrun does not end")
	}
	if errors.Is(m.err, exec.ErrWaitDelay) {
		t.Error("something that vmrun left running holds its output open")
	}
	return m.cmd.ProcessState.ExitCode()
}

// ends waits for the end of the call and fails the test unless its exit code is
// the wanted one.
func (m *machine) ends(t *testing.T, want int) {
	t.Helper()
	if code := m.exit(t); code != want {
		t.Errorf("vmrun's exit code is %d, want %d", code, want)
	}
}

// output is all that the call has said so far, the guest's console last.
func (m *machine) output() string {
	if m.messages == m.console {
		return m.console.String()
	}
	return m.messages.String() + m.console.String()
}

// transcript keeps what is written to it and wakes those who wait for more.
type transcript struct {
	mu    sync.Mutex
	text  []byte
	read  int           // up to here next has matched
	grown chan struct{} // closed and replaced with each write
	ended bool
}

func newTranscript() *transcript {
	return &transcript{grown: make(chan struct{})}
}

// Write implements io.Writer. Carriage returns are dropped.
func (x *transcript) Write(p []byte) (int, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.text = append(x.text, bytes.ReplaceAll(p, []byte("\r"), nil)...)
	x.wake()
	return len(p), nil
}

// String is all that was written so far.
func (x *transcript) String() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return string(x.text)
}

func (x *transcript) close() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.ended = true
	x.wake()
}

func (x *transcript) wake() {
	close(x.grown)
	x.grown = make(chan struct{})
}

func (x *transcript) expect(t *testing.T, pattern string, limit time.Duration) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), sandbox.Slowed(limit))
	defer cancel()
	match, err := x.next(ctx, regexp.MustCompile(pattern))
	if err != nil {
		t.Fatalf("wait for %q: %v", pattern, err)
	}
	return match
}

func (x *transcript) next(ctx context.Context, pattern *regexp.Regexp) ([]string, error) {
	for {
		x.mu.Lock()
		rest, grown, ended := x.text[x.read:], x.grown, x.ended
		at := pattern.FindSubmatchIndex(rest)
		if at != nil {
			x.read += at[1]
		}
		x.mu.Unlock()
		switch {
		case at != nil:
			var groups []string
			for _, group := range pattern.FindSubmatch(rest) {
				groups = append(groups, string(group))
			}
			return groups, nil
		case ended:
			return nil, io.ErrUnexpectedEOF
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
