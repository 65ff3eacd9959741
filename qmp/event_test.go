package qmp

import (
	"errors"
	"io"
	"testing"
	"time"
)

// QEMU sends SHUTDOWN before it answers quit, and is gone right after.
func TestShutdownEventBeforeReplyToQuit(t *testing.T) {
	c, f := connect(t)
	events, cancel := c.Subscribe()
	defer cancel()
	result := run(t.Context(), c, "quit")
	cmd := f.expect("quit")
	f.event("SHUTDOWN", 1)
	f.reply(cmd, "{}")
	f.hangUp()
	wantNil(t, <-result)
	<-c.Done()
	if e := <-events; e.Name != "SHUTDOWN" {
		t.Errorf("got %q, want SHUTDOWN", e.Name)
	}
	if e, ok := <-events; ok {
		t.Errorf("got %q after QEMU's end", e.Name)
	}
}

// Whoever writes to a QEMU that is gone must not lose its last words.
func TestEventsBeforeAHangUpSurviveACommandAfterIt(t *testing.T) {
	const n = 1000
	c, f := connect(t)
	events, cancel := c.Subscribe()
	defer cancel()
	for i := range n {
		f.event("SHUTDOWN", i)
	}
	f.hangUp()
	if err := c.Run(t.Context(), "stop", nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
	got := 0
	for range events {
		got++
	}
	if got != n {
		t.Errorf("got %d events of %d", got, n)
	}
}

func TestEachSubscriberGetsEachEvent(t *testing.T) {
	c, f := connect(t)
	first, cancelFirst := c.Subscribe()
	second, cancelSecond := c.Subscribe()
	defer cancelSecond()
	f.event("STOP", 1)
	for _, events := range []<-chan Event{first, second} {
		if e := <-events; e.Name != "STOP" {
			t.Errorf("got %q", e.Name)
		}
	}
	cancelFirst()
	cancelFirst()
	if e, ok := <-first; ok {
		t.Errorf("got %q after cancel", e.Name)
	}
	f.event("RESUME", 2)
	if e := <-second; e.Name != "RESUME" {
		t.Errorf("got %q", e.Name)
	}
}

func TestCloseDropsQueuedEvents(t *testing.T) {
	c, f := connect(t)
	events, _ := c.Subscribe()
	seen, _ := c.Subscribe()
	f.event("STOP", 1)
	<-seen
	wantNil(t, c.Close())
	if e, ok := <-events; ok {
		t.Errorf("got %q after Close", e.Name)
	}
}

func TestSubscribeAfterTheEnd(t *testing.T) {
	c, f := connect(t)
	f.hangUp()
	<-c.Done()
	events, cancel := c.Subscribe()
	defer cancel()
	if e, ok := <-events; ok {
		t.Errorf("got %q", e.Name)
	}
	if !errors.Is(c.Err(), io.EOF) {
		t.Errorf("ended by %v", c.Err())
	}
}

func TestEventWithoutTimeAndData(t *testing.T) {
	for _, line := range []string{
		`{"event": "STOP"}`,
		`{"event": "STOP", "timestamp": {"seconds": -1, "microseconds": -1}}`,
	} {
		m, err := parse([]byte(line))
		wantNil(t, err)
		if e := m.event(); e.Name != "STOP" || e.Data != nil || !e.Time.Equal(time.Time{}) {
			t.Errorf("%s became %+v", line, e)
		}
	}
}
