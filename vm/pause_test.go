package vm

import (
	"bufio"
	"errors"
	"strings"
	"testing"
)

func TestPause(t *testing.T) {
	i := newFixture(t, "echo").launch(t)
	if err := i.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := i.State().Phase; got != Paused {
		t.Errorf("it is %s", got)
	}
	// The fake runs on, as far as it says.
	if _, ok := errors.AsType[*StateError](i.Resume(t.Context())); !ok {
		t.Error("resumed what runs")
	}
	paused := newFixture(t, "paused").launch(t)
	if _, ok := errors.AsType[*StateError](paused.Pause(t.Context())); !ok {
		t.Error("paused what is paused")
	}
	if err := paused.Resume(t.Context()); err != nil || paused.State().Phase != Running {
		t.Errorf("resume: %v, it is %s", err, paused.State().Phase)
	}
}

// A reset is waited for, and is the end of a micro guest only when it is the
// guest's.
func TestReset(t *testing.T) {
	i := newFixture(t, "echo").micro().launch(t)
	if err := i.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewScanner(i.Console())
	for n := 0; n < 2 && said.Scan(); {
		if said.Text() == "set-action" { // before it, and some time afterwards
			n++
		}
	}
	if i.hasEnded() {
		t.Error("it has ended")
	}
}

// After its end a machine is not to be worked with, which is told as such.
func TestPauseAfterEnd(t *testing.T) {
	i := newFixture(t, "off").launch(t)
	wait(t, i)
	for _, err := range []error{i.Pause(t.Context()), i.Resume(t.Context()), i.Reset(t.Context())} {
		if _, ok := errors.AsType[*StateError](err); !ok {
			t.Errorf("it says %v", err)
		}
	}
}

// A view begins with as many lines as are wanted.
func TestConsoleTail(t *testing.T) {
	for _, test := range []struct {
		output string
		lines  int
		want   string
	}{
		{"a\nb\nc\n", 2, "b\nc\n"}, {"a\nb\nc", 2, "b\nc"}, {"a\nb\n", 9, "a\nb\n"}, {"a\nb\n", 0, ""}, {"", 3, ""},
		{"\n\n\n", 2, "\n\n"}, {"no end", 1, "no end"}, {strings.Repeat("x", consoleRing) + "\ny\n", 1, "y\n"},
	} {
		c := newConsole(nil, nil)
		c.publish([]byte(test.output))
		c.eof = true
		v := &Console{console: c}
		v.backTo(test.lines)
		got := ""
		buf := make([]byte, 100)
		for n, err := v.Read(buf); err == nil; n, err = v.Read(buf) {
			got += string(buf[:n])
		}
		if got != test.want {
			t.Errorf("the last %d lines of %.20q are %q, want %q", test.lines, test.output, got, test.want)
		}
	}
}
