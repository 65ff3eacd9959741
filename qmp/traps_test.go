package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

// The seven tests of this file are what QMP clients are known to get wrong.

func TestTrapReplyOver64KiB(t *testing.T) {
	for _, size := range []int{64<<10 + 1, 200 << 10, 1<<20 + 1} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			c, f := connect(t)
			want := strings.Repeat("x", size)
			var got string
			result := start(func() error { return c.Run(t.Context(), "query-qmp-schema", nil, &got) })
			f.reply(f.expect("query-qmp-schema"), `"`+want+`"`)
			wantNil(t, <-result)
			if got != want {
				t.Errorf("got %d bytes, want %d", len(got), len(want))
			}
		})
	}
}

func TestTrapUndrainedEventsBlockNoCommand(t *testing.T) {
	const n = 5000
	c, f := connect(t)
	idle, cancel := c.Subscribe()
	defer cancel()
	for i := range n {
		f.event("RTC_CHANGE", i)
	}
	result := run(t.Context(), c, "query-status")
	f.reply(f.expect("query-status"), "{}")
	wantNil(t, <-result)

	for i := range n {
		e := <-idle
		if want := fmt.Sprintf(`{"n": %d}`, i); string(e.Data) != want {
			t.Fatalf("event %d has %s, want %s", i, e.Data, want)
		}
	}
}

func TestTrapCommandWithoutDeadline(t *testing.T) {
	c, f := connect(t)
	ctx, cancel := c.bound(context.Background())
	defer cancel()
	deadline, ok := ctx.Deadline()
	if left := time.Until(deadline); !ok || left <= 0 || left > DefaultTimeout {
		t.Errorf("%v left without a deadline of the caller's, want %v", left, DefaultTimeout)
	}

	c.timeout = 10 * time.Millisecond
	err := c.Run(context.Background(), "stop", nil, nil)
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrClosed) {
		t.Errorf("unanswered: %v", err)
	}
	f.expect("stop")
}

func TestTrapEventBetweenCommandAndReply(t *testing.T) {
	c, f := connect(t)
	events, cancel := c.Subscribe()
	defer cancel()
	var status struct{ Running bool }
	result := start(func() error { return c.Run(t.Context(), "query-status", nil, &status) })
	cmd := f.expect("query-status")
	f.event("RESUME", 1)
	f.reply(cmd, `{"running": true}`)
	wantNil(t, <-result)
	if !status.Running {
		t.Error("the reply was lost")
	}
	e := <-events
	if want := time.Unix(1700000000, 250e6); e.Name != "RESUME" || !e.Time.Equal(want) {
		t.Errorf("got %s at %v, want RESUME at %v", e.Name, e.Time, want)
	}
}

func TestTrapErrorClassKept(t *testing.T) {
	c, f := connect(t)
	result := run(t.Context(), c, "device_del")
	cmd := f.expect("device_del")
	f.send(fmt.Sprintf(`{"error": {"class": "DeviceNotFound", "desc": "Device 'net0' not found"}, "id": %s}`, cmd.ID))
	err := fmt.Errorf("unplug: %w", <-result)
	var refused *Error
	if !errors.As(err, &refused) {
		t.Fatalf("no *Error in %v", err)
	}
	if want := (Error{"device_del", "DeviceNotFound", "Device 'net0' not found"}); *refused != want {
		t.Errorf("got %+v, want %+v", *refused, want)
	}
	if want := "unplug: run device_del: DeviceNotFound: Device 'net0' not found"; err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
	if c.Err() != nil {
		t.Errorf("the refusal ended the connection: %v", c.Err())
	}
}

func TestTrapRepliesMatchedByID(t *testing.T) {
	c, f := connect(t)
	names := []string{"one", "two", "three"}
	answers := make([]string, len(names))
	var results []<-chan error
	var commands []command
	for i, name := range names {
		results = append(results, start(func() error { return c.Run(t.Context(), name, nil, &answers[i]) }))
		commands = append(commands, f.expect(name))
	}
	f.send(`{"return": "a number that was never given", "id": 4711}`)
	f.send(`{"return": "somebody else's", "id": "libvirt-7"}`)
	f.send(`{"return": "nobody's"}`)
	f.send(`{"return": "structured", "id": {"id": 2}}`)
	for i := len(commands) - 1; i >= 0; i-- {
		f.reply(commands[i], `"`+names[i]+`"`)
	}
	for i, name := range names {
		wantNil(t, <-results[i])
		if answers[i] != name {
			t.Errorf("%s was answered with %q", name, answers[i])
		}
	}
}

func TestTrapQEMUDiesMidCommand(t *testing.T) {
	c, f := connect(t)
	first := run(t.Context(), c, "stop")
	f.expect("stop")
	second := run(t.Context(), c, "cont")
	f.expect("cont")
	f.hangUp()
	var third json.RawMessage
	for name, err := range map[string]error{
		"stop":  <-first,
		"cont":  <-second,
		"later": c.Run(t.Context(), "later", nil, &third),
	} {
		if !errors.Is(err, ErrClosed) || !errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", name, err)
		}
		if want := "run " + name + ": connection to QEMU ended: EOF"; err.Error() != want {
			t.Errorf("got %q, want %q", err, want)
		}
	}
	<-c.Done()
	if !errors.Is(c.Err(), ErrClosed) {
		t.Errorf("Err is %v", c.Err())
	}
}
