package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// fakeQGA serves the protocol of qemu-guest-agent. What it answers is told by
// answer; "" is no answer at all.
type fakeQGA struct {
	conn   net.Conn
	answer func(command string, args json.RawMessage) string

	mu    sync.Mutex
	calls []string
}

func newQGA(t *testing.T, answer func(command string, args json.RawMessage) string) (*QGA, *fakeQGA) {
	t.Helper()
	ours, theirs := connection(t)
	return newQGAOn(t, ours, theirs, answer)
}

func newQGAOn(t *testing.T, ours, theirs net.Conn, answer func(command string, args json.RawMessage) string) (*QGA, *fakeQGA) {
	t.Helper()
	f := &fakeQGA{conn: theirs, answer: answer}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.serve()
	}()
	q := NewQGA(ours)
	t.Cleanup(func() {
		q.Close()
		theirs.Close()
		<-done
	})
	return q, f
}

// connection is one that holds what nobody has read yet, as QEMU's do.
func connection(t *testing.T) (ours, theirs net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	return conns[0], conns[1]
}

func (f *fakeQGA) serve() {
	in := bufio.NewReader(f.conn)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return
		}
		var c struct {
			Execute   string
			Arguments json.RawMessage
		}
		if json.Unmarshal(bytes.TrimLeft(line, "\xff"), &c) != nil {
			continue
		}
		f.mu.Lock()
		f.calls = append(f.calls, c.Execute)
		reply := f.answer
		f.mu.Unlock()
		answer := reply(c.Execute, c.Arguments)
		if answer == "" && c.Execute == "guest-sync-delimited" {
			var id struct{ ID int64 }
			json.Unmarshal(c.Arguments, &id)
			answer = fmt.Sprintf("\xff{\"return\": %d}", id.ID)
		}
		if answer != "" {
			io.WriteString(f.conn, answer+"\n")
		}
	}
}

func (f *fakeQGA) called() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.calls, " ")
}

func none(string, json.RawMessage) string { return "" }

func TestQGARun(t *testing.T) {
	polls := 0
	q, f := newQGA(t, func(command string, args json.RawMessage) string {
		switch command {
		case "guest-exec":
			var a struct {
				Path  string
				Arg   []string
				Input []byte `json:"input-data"`
			}
			json.Unmarshal(args, &a)
			if line := a.Path + " " + strings.Join(a.Arg, " "); line != `/bin/sh -c cd -- "$0" && exec "$@" /tmp env A=b cat x` || string(a.Input) != "input" {
				return fmt.Sprintf(`{"error": {"class": "GenericError", "desc": %q}}`, line)
			}
			return `{"return": {"pid": 42}}`
		case "guest-exec-status":
			if polls++; polls < 3 {
				return `{"return": {"exited": false}}`
			}
			return fmt.Sprintf(`{"return": {"exited": true, "exitcode": 7, "out-data": %q, "err-data": %q}}`,
				base64.StdEncoding.EncodeToString([]byte("out")), base64.StdEncoding.EncodeToString([]byte("err")))
		}
		return ""
	})
	var out, errs strings.Builder
	status, err := q.Run(t.Context(), Command{Argv: []string{"cat", "x"}, Env: []string{"A=b"}, Dir: "/tmp",
		Stdin: strings.NewReader("input"), Stdout: &out, Stderr: &errs})
	if err != nil || status.Code != 7 || out.String() != "out" || errs.String() != "err" {
		t.Errorf("%+v, %v, %q, %q", status, err, out.String(), errs.String())
	}
	want := "guest-sync-delimited guest-exec guest-exec-status guest-exec-status guest-exec-status"
	if got := f.called(); got != want {
		t.Errorf("called %s", got)
	}
}

func TestQGAEndings(t *testing.T) {
	for name, tt := range map[string]struct {
		exec, status string
		want         Status
		err          string
		code         int // of a *RunError
	}{
		"signal":    {`{"return": {"pid": 1}}`, `{"return": {"exited": true, "signal": 9}}`, Status{Signal: 9}, "", 0},
		"not found": {`{"error": {"class": "GenericError", "desc": "no such child"}}`, "", Status{}, "no such child", 127},
		"forbidden": {`{"error": {"class": "CommandNotFound", "desc": "disabled"}}`, "", Status{}, "does not allow it", 0},
		"truncated": {`{"return": {"pid": 1}}`, `{"return": {"exited": true, "out-truncated": true}}`, Status{}, "16 MiB", 0},
		"a number":  {`{"return": 1}`, "", Status{}, "parse reply to guest-exec", 0},
		"nothing":   {`{}`, "", Status{}, "neither a result nor an error", 0},
		"garbage":   {`Debian GNU/Linux 12`, "", Status{}, "parse reply", 0},
	} {
		t.Run(name, func(t *testing.T) {
			q, _ := newQGA(t, func(command string, _ json.RawMessage) string {
				return map[string]string{"guest-exec": tt.exec, "guest-exec-status": tt.status}[command]
			})
			status, err := q.Run(t.Context(), Command{Argv: []string{"x"}})
			if err == nil && tt.err != "" || err != nil && (tt.err == "" || !strings.Contains(err.Error(), tt.err)) || err == nil && status != tt.want {
				t.Errorf("%+v, %v", status, err)
			}
			if e, ok := errors.AsType[*RunError](err); ok != (tt.code != 0) || ok && e.Code != tt.code {
				t.Errorf("%v, want code %d", err, tt.code)
			}
		})
	}
}

func TestQGASilent(t *testing.T) {
	q, _ := newQGA(t, func(string, json.RawMessage) string { return " " })
	q.patience = quick
	_, err := q.Run(t.Context(), Command{Argv: []string{"true"}})
	if e, ok := errors.AsType[*NoAnswerError](err); !ok || e.After != quick || err.Error() != "no agent answered in 50ms: is qemu-guest-agent running in the guest?" {
		t.Errorf("%v", err)
	}
	// One that nobody serves is full some day, and then writing fails in time.
	ours, theirs := net.Pipe()
	defer theirs.Close()
	q = NewQGA(ours)
	defer q.Close()
	q.patience = quick
	if _, ok := errors.AsType[*NoAnswerError](q.call(t.Context(), "guest-ping", nil, nil)); !ok {
		t.Error("a channel that takes nothing")
	}
}

// Who waits for an agent that does not answer fails with the one whose turn it
// is.
func TestQGACrowd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		q, _ := newQGAOn(t, ours, theirs, func(string, json.RawMessage) string { return " " })
		started := time.Now()
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				if _, ok := errors.AsType[*NoAnswerError](q.call(t.Context(), "guest-ping", nil, nil)); !ok {
					t.Error("an answer")
				}
			})
		}
		all.Wait()
		if took := time.Since(started); took != Patience {
			t.Errorf("50 callers have waited for %v", took)
		}
	})
}

// A command may take long, and so may those before it, as long as something
// moves.
func TestQGASlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		q, _ := newQGAOn(t, ours, theirs, func(command string, _ json.RawMessage) string {
			if command != "guest-ping" {
				return ""
			}
			io.WriteString(theirs, `{"return": {"`)
			for range 10 {
				time.Sleep(Patience - time.Second)
				io.WriteString(theirs, "n")
			}
			return `": 1}}`
		})
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				if err := q.call(t.Context(), "guest-ping", nil, nil); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	})
}

// A reply that comes too late is not taken for the next command's, whatever else
// is on the line.
func TestQGAResynchronises(t *testing.T) {
	late := make(chan struct{})
	pings := 0
	q, f := newQGA(t, func(command string, _ json.RawMessage) string {
		if command != "guest-ping" {
			return ""
		}
		if pings++; pings == 1 {
			<-late
			return `{"return": "too late"}` + "\nnoise {\xff{\"return\": 5}\n\xff\xff{\"retu"
		}
		return `{"return": {"n": 2}}`
	})
	q.patience = quick
	err := q.call(t.Context(), "guest-ping", nil, nil)
	if _, ok := errors.AsType[*NoAnswerError](err); !ok {
		t.Errorf("%v", err)
	}
	close(late)
	q.patience = Patience
	var result struct{ N int }
	if err := q.call(t.Context(), "guest-ping", nil, &result); err != nil || result.N != 2 {
		t.Errorf("%+v, %v", result, err)
	}
	if got := f.called(); got != "guest-sync-delimited guest-ping guest-sync-delimited guest-ping" {
		t.Errorf("called %s", got)
	}
}

// An agent that dies while a command runs.
func TestQGADeath(t *testing.T) {
	var f *fakeQGA
	q, f := newQGA(t, func(command string, _ json.RawMessage) string {
		switch command {
		case "guest-exec":
			return `{"return": {"pid": 1}}`
		case "guest-exec-status":
			f.conn.Close()
		}
		return ""
	})
	if _, err := q.Run(t.Context(), Command{Argv: []string{"x"}}); !errors.Is(err, ErrClosed) {
		t.Errorf("%v", err)
	}
}

func TestQGASignals(t *testing.T) {
	signalled, given, again := make(chan string, 2), false, false
	enough := errors.New("enough")
	ctx, giveUp := context.WithCancelCause(t.Context())
	defer giveUp(nil)
	q, _ := newQGA(t, func(command string, args json.RawMessage) string {
		switch {
		case command == "guest-exec" && strings.Contains(string(args), "kill"):
			given = true
			signalled <- string(args)
			return `{"return": {"pid": 2}}`
		case command == "guest-exec":
			return `{"return": {"pid": 1}}`
		case command == "guest-exec-status" && given:
			return `{"return": {"exited": true, "signal": 15}}`
		case command == "guest-exec-status":
			if again {
				giveUp(enough)
			}
			return `{"return": {"exited": false}}`
		}
		return ""
	})
	controls := make(chan Control, 1)
	controls <- Control{Signal: 15}
	status, err := q.Run(t.Context(), Command{Argv: []string{"x"}, Controls: controls})
	if err != nil || status.Signal != 15 || !strings.Contains(<-signalled, `"15","1"`) {
		t.Errorf("%+v, %v", status, err)
	}
	given, again = false, true
	if _, err := q.Run(ctx, Command{Argv: []string{"x"}}); !errors.Is(err, enough) {
		t.Errorf("given up: %v", err)
	}
	if text := <-signalled; !strings.Contains(text, `"1","1"`) {
		t.Errorf("was not hung up but got %s", text)
	}
}

func TestQGAInput(t *testing.T) {
	q, _ := newQGA(t, none)
	if _, err := q.Run(t.Context(), Command{Argv: []string{"x"}, Stdin: io.LimitReader(zeros{}, maxInput+1)}); err == nil || !strings.Contains(err.Error(), "no more than 16 MiB") {
		t.Errorf("too much input: %v", err)
	}
	if _, err := q.Run(t.Context(), Command{Argv: []string{"x"}, TTY: &Size{}}); !errors.Is(err, ErrNoTerminal) {
		t.Errorf("a terminal: %v", err)
	}
	if _, err := q.Run(t.Context(), Command{}); err == nil {
		t.Error("no command is no error")
	}
	ctx, cancel := context.WithTimeout(t.Context(), quick)
	defer cancel()
	r, w := io.Pipe()
	defer w.Close()
	if _, err := q.Run(ctx, Command{Argv: []string{"x"}, Stdin: r}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("input without an end: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// Whichever of two agents is there is taken; vmrun's where both are.
func TestEither(t *testing.T) {
	ping := func(command string, _ json.RawMessage) string {
		return map[string]string{
			"guest-ping": `{"return": {}}`, "guest-exec": `{"return": {"pid": 1}}`,
			"guest-exec-status": `{"return": {"exited": true, "exitcode": 2}}`,
		}[command]
	}
	own, g := newPair(t)
	q, _ := newQGA(t, ping)
	e := Either{VMRun: own, QGA: q}
	if s, err := e.Run(t.Context(), Command{Argv: []string{"x"}}); err != nil || s.Code != 2 {
		t.Errorf("QEMU's alone: %+v, %v", s, err)
	}
	go g.serve()
	if err := own.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	go func() { answers(t, <-g.opened, 1) }()
	if s, err := e.Run(t.Context(), Command{Argv: []string{"x"}}); err != nil || s.Code != 1 {
		t.Errorf("both: %+v, %v", s, err)
	}
	silent, _ := newPair(t)
	mute, _ := newQGA(t, func(string, json.RawMessage) string { return " " })
	mute.patience = quick
	started := time.Now()
	if err := (Either{VMRun: silent, QGA: mute}).Put(t.Context(), "/x", "x", failing{}); err == nil || !strings.HasSuffix(err.Error(), "is qemu-guest-agent running in the guest?") {
		t.Errorf("neither, after %v: %v", time.Since(started), err)
	}
}

// Whatever a guest says, a call returns, and with what belongs to it or an error.
func FuzzQGA(f *testing.F) {
	f.Add([]byte("\xff{\"return\": 1}\n{\"return\": {}}\n"))
	f.Add([]byte("{\"error\": {\"class\": \"x\"}}\n\xff\xff\n"))
	f.Fuzz(func(t *testing.T, said []byte) {
		c := newChannel(replay{bytes.NewReader(said)})
		var result json.RawMessage
		if err := c.call(t.Context(), quick, "guest-ping", nil, &result); err == nil {
			t.Errorf("%q was taken for an answer to a random number", said)
		}
		c.synced = true
		if err := c.call(t.Context(), quick, "guest-ping", nil, &result); err == nil && !json.Valid(result) {
			t.Errorf("%q was returned", result)
		}
	})
}

// replay is a connection on which all has been said.
type replay struct{ r io.Reader }

func (r replay) Read(p []byte) (int, error)     { return r.r.Read(p) }
func (replay) Write(p []byte) (int, error)      { return len(p), nil }
func (replay) Close() error                     { return nil }
func (replay) LocalAddr() net.Addr              { return nil }
func (replay) RemoteAddr() net.Addr             { return nil }
func (replay) SetDeadline(time.Time) error      { return nil }
func (replay) SetReadDeadline(time.Time) error  { return nil }
func (replay) SetWriteDeadline(time.Time) error { return nil }
