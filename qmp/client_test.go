package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestVersion(t *testing.T) {
	c, _ := connect(t)
	if got, want := c.Version(), (Version{7, 2, 22, "Debian 1:7.2"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got, want := c.Version().String(), "7.2.22 (Debian 1:7.2)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := (Version{Major: 9}).String(), "9.0.0"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestNewClientFails(t *testing.T) {
	tests := []struct {
		name  string
		play  func(f *fakeQEMU)
		cause error
		text  string
	}{
		{"QEMU died before its greeting", func(f *fakeQEMU) { f.hangUp() }, io.EOF, "EOF"},
		{"QEMU died in its greeting", func(f *fakeQEMU) { f.write(hello[:20]); f.hangUp() }, io.ErrUnexpectedEOF, "20 bytes"},
		{"no greeting but an event", func(f *fakeQEMU) { f.event("STOP", 1) }, ErrClosed, "STOP"},
		{"another protocol", func(f *fakeQEMU) { f.send("SSH-2.0-OpenSSH_9.2") }, ErrClosed, `"SSH-2.0-OpenSSH_9.2\r\n"`},
		{"greeted twice", func(f *fakeQEMU) { f.send(hello); f.send(hello) }, ErrClosed, "not one greeting"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f, conn := newFake(t)
			test.play(f)
			c, err := NewClient(t.Context(), conn)
			if c != nil || !errors.Is(err, ErrClosed) || !errors.Is(err, test.cause) {
				t.Fatalf("got %v, want cause %v", err, test.cause)
			}
			if !strings.HasPrefix(err.Error(), "negotiate with QEMU: ") || !strings.Contains(err.Error(), test.text) {
				t.Errorf("%q does not mention %q", err, test.text)
			}
		})
	}
}

func TestNewClientWithoutGreetingEndsAndClosesTheConnection(t *testing.T) {
	f, conn := newFake(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := NewClient(ctx, conn)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no greeting") {
		t.Errorf("got %v", err)
	}
	if _, err := f.lines.ReadByte(); err != io.EOF {
		t.Errorf("QEMU's side reads %v, want EOF", err)
	}
}

func TestArgumentsAndResult(t *testing.T) {
	c, f := connect(t)
	type args struct {
		Path string `json:"path"`
	}
	var got []int
	result := start(func() error { return c.Run(t.Context(), "qom-list", args{`/a "b"`}, &got) })
	cmd := f.expect("qom-list")
	if want := `{"path":"/a \"b\""}`; string(cmd.Arguments) != want {
		t.Errorf("arguments %s, want %s", cmd.Arguments, want)
	}
	f.reply(cmd, "[1, 2]")
	wantNil(t, <-result)
	if fmt.Sprint(got) != "[1 2]" {
		t.Errorf("got %v", got)
	}

	result = start(func() error { return c.Run(t.Context(), "qom-get", nil, &got) })
	cmd = f.expect("qom-get")
	if cmd.Arguments != nil {
		t.Errorf("arguments %s, want none", cmd.Arguments)
	}
	f.reply(cmd, `"text"`)
	if err := <-result; err == nil || !strings.HasPrefix(err.Error(), "run qom-get: decode reply: ") {
		t.Errorf("wrong type of result: %v", err)
	}
	err := c.Run(t.Context(), "qom-set", func() {}, nil)
	if err == nil || !strings.HasPrefix(err.Error(), "run qom-set: encode arguments: ") {
		t.Errorf("arguments without JSON: %v", err)
	}
	if c.Err() != nil {
		t.Errorf("connection ended: %v", c.Err())
	}
}

func TestBadLinesEndTheConnection(t *testing.T) {
	tests := []struct{ name, bytes, text string }{
		{"garbage", "\x00\x7fELF\r\n", `parse line "\x00\x7fELF\r\n"`},
		{"an empty line", "\r\n", `parse line "\r\n"`},
		{"JSON without sense", `{"answer": 42}` + "\r\n", "neither greeting nor reply nor event"},
		{"an array", "[]\n", "parse line"},
		{"a wrong type", `{"event": 7}` + "\n", "parse line"},
		{"two values on a line", `{"return": {}} {"return": {}}` + "\n", "parse line"},
		{"a greeting in the middle", hello + "\n", "not one greeting"},
		{"garbage without end", strings.Repeat("x", 100_000) + "\n", "parse line"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c, f := connect(t)
			result := run(t.Context(), c, "stop")
			f.expect("stop")
			f.write(test.bytes)
			err := <-result
			if !errors.Is(err, ErrClosed) || !strings.Contains(err.Error(), test.text) {
				t.Errorf("got %v, want %q", err, test.text)
			}
			if len(err.Error()) > 500 {
				t.Errorf("error text of %d bytes", len(err.Error()))
			}
			if _, err := f.lines.ReadByte(); err != io.EOF {
				t.Errorf("QEMU's side reads %v, want EOF", err)
			}
		})
	}
}

func TestHalfLine(t *testing.T) {
	c, f := connect(t)
	result := run(t.Context(), c, "stop")
	cmd := f.expect("stop")
	f.write(`{"return": {}, `)
	f.write(fmt.Sprintf(`"id": %s}`+"\n", cmd.ID))
	wantNil(t, <-result)

	f.write(`{"return": {`)
	f.hangUp()
	<-c.Done()
	if !errors.Is(c.Err(), io.ErrUnexpectedEOF) {
		t.Errorf("cut off in a line: %v", c.Err())
	}
}

func TestCancelledCommandIsAnsweredLater(t *testing.T) {
	c, f := connect(t)
	ctx, cancel := context.WithCancel(t.Context())
	var late, next string
	result := start(func() error { return c.Run(ctx, "slow", nil, &late) })
	slow := f.expect("slow")
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) || errors.Is(err, ErrClosed) {
		t.Fatalf("cancelled: %v", err)
	}
	result = start(func() error { return c.Run(t.Context(), "next", nil, &next) })
	cmd := f.expect("next")
	f.reply(slow, `"late"`)
	f.reply(cmd, `"mine"`)
	wantNil(t, <-result)
	if late != "" || next != "mine" {
		t.Errorf("slow got %q, next got %q", late, next)
	}
	if len(c.pending) != 0 {
		t.Errorf("%d commands still pending", len(c.pending))
	}
}

func TestContextThatHasEndedSendsNothing(t *testing.T) {
	c, f := connect(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Run(ctx, "never", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	result := run(t.Context(), c, "next")
	f.reply(f.expect("next"), "{}")
	wantNil(t, <-result)
}

// A command that QEMU can't parse is answered without id.
func TestRefusalWithoutIDBelongsToTheOldestCommand(t *testing.T) {
	c, f := connect(t)
	ctx, cancel := context.WithCancel(t.Context())
	first := run(ctx, c, "given-up")
	f.expect("given-up")
	cancel()
	<-first
	second := run(t.Context(), c, "second")
	cmd := f.expect("second")
	third := run(t.Context(), c, "third")
	f.expect("third")

	f.send(`{"error": {"class": "GenericError", "desc": "given-up: JSON parse error"}}`)
	f.reply(cmd, "{}")
	f.send(`{"id": null, "error": {"class": "GenericError", "desc": "third: JSON parse error"}}`)
	wantNil(t, <-second)
	var refused *Error
	if err := <-third; !errors.As(err, &refused) || refused.Desc != "third: JSON parse error" {
		t.Errorf("third: %v", err)
	}
}

func TestConcurrentCommands(t *testing.T) {
	const goroutines, each = 32, 20
	c, f := connect(t)
	played := start(func() error {
		for range goroutines * each {
			line, err := f.lines.ReadBytes('\n')
			if err != nil {
				return err
			}
			cmd := struct {
				Arguments, ID any
			}{}
			if err := json.Unmarshal(line, &cmd); err != nil {
				return err
			}
			if _, err := fmt.Fprintf(f.conn, `{"event": "NOISE"}`+"\r\n"+`{"id": %v, "return": %q}`+"\r\n", cmd.ID, cmd.Arguments); err != nil {
				return err
			}
		}
		return nil
	})
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range each {
				want, got := fmt.Sprintf("%d-%d", g, i), ""
				if err := c.Run(t.Context(), "echo", want, &got); err != nil || got != want {
					t.Errorf("got %q, %v, want %q", got, err, want)
				}
			}
		})
	}
	wg.Wait()
	wantNil(t, <-played)
}

func TestCloseEndsPendingCommands(t *testing.T) {
	c, f := connect(t)
	result := run(t.Context(), c, "stop")
	f.expect("stop")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := c.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
	}
	wg.Wait()
	for _, err := range []error{<-result, c.Err(), c.Run(t.Context(), "later", nil, nil)} {
		if !errors.Is(err, ErrClosed) || !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v", err)
		}
	}
	if _, err := f.lines.ReadByte(); err != io.EOF {
		t.Errorf("QEMU's side reads %v, want EOF", err)
	}
}

// A bubble waits for its goroutines, and the test fails if one stays behind.
func TestNoGoroutineStaysBehind(t *testing.T) {
	for name, end := range map[string]func(*Client, *fakeQEMU){
		"closed":          func(c *Client, f *fakeQEMU) { c.Close(); f.hangUp() },
		"hung up, closed": func(c *Client, f *fakeQEMU) { f.hangUp(); <-c.Done(); c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, f := connect(t)
				_, cancel := c.Subscribe()
				c.Subscribe() // neither read nor cancelled
				c.Subscribe()
				f.event("STOP", 1)
				result := run(t.Context(), c, "stop")
				f.expect("stop")
				cancel()
				end(c, f)
				if err := <-result; !errors.Is(err, ErrClosed) {
					t.Errorf("got %v", err)
				}
			})
		})
	}
}
