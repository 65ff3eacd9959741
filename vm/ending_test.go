package vm

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestEndings(t *testing.T) {
	exit := func(n int) *int { return &n }
	for _, test := range []struct {
		behaviour string
		micro     bool
		reason    string
		guest     *int
		code      int
		err       string
	}{
		{"off", false, GuestShutdown, nil, 0, ""},
		{"off", true, GuestShutdown, nil, 0, ""},
		{"exit-0", true, GuestShutdown, exit(0), 0, ""},
		{"exit-7", true, GuestShutdown, exit(7), 7, ""},
		{"exit-700", true, GuestShutdown, nil, 0, ""},
		{"reset", false, GuestReset, nil, 0, ""},
		{"reset", true, GuestReset, nil, 5, "the guest panicked"},
		{"mum", true, GuestReset, nil, 5, "the guest reset before it said anything; it may need more memory"},
		{"panic", false, GuestPanic, nil, 5, "the guest panicked"},
		{"term", false, HostSignal, nil, 4, "QEMU was ended by a signal"},
		{"crash", false, "", nil, 4, "QEMU ended without a reason (signal: killed): qemu: the fake crashes"},
	} {
		t.Run(test.behaviour, func(t *testing.T) {
			f := newFixture(t, test.behaviour)
			if test.micro {
				f.micro()
			}
			e := wait(t, f.launch(t))
			if e.Reason != test.reason || e.ExitCode() != test.code {
				t.Errorf("ended by %q with code %d, want %q and %d", e.Reason, e.ExitCode(), test.reason, test.code)
			}
			if (e.GuestExit == nil) != (test.guest == nil) || e.GuestExit != nil && *e.GuestExit != *test.guest {
				t.Errorf("guest's exit code is %v, want %v", e.GuestExit, test.guest)
			}
			if text := errorText(e.Err()); text != test.err {
				t.Errorf("Err is %q, want %q", text, test.err)
			}
		})
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestStop(t *testing.T) {
	for _, test := range []struct {
		behaviour string
		grace     time.Duration
		reason    string
	}{
		{"serve", time.Hour, GuestShutdown},
		{"lazy", time.Millisecond, HostQuit}, // asks in vain
		{"serve", 0, HostQuit},
		{"paused", time.Hour, HostQuit}, // has no use for its button
	} {
		t.Run(test.behaviour, func(t *testing.T) {
			i := newFixture(t, test.behaviour).launch(t)
			if err := i.Stop(t.Context(), test.grace); err != nil {
				t.Fatal(err)
			}
			e := wait(t, i)
			if e.Reason != test.reason || e.ExitCode() != 0 || !e.Stopped {
				t.Errorf("ended as %+v with code %d, want %q and 0", e, e.ExitCode(), test.reason)
			}
		})
	}
}

// A second and a third call each skip ahead by one step of the ladder.
func TestStopSkipsAhead(t *testing.T) {
	i := newFixture(t, "stubborn").launch(t)
	console := i.Console()
	stopped := make(chan error)
	stop := func() { stopped <- i.Stop(t.Context(), time.Hour) }
	go stop()
	awaitLine(t, console, "button")
	go stop()
	awaitLine(t, console, "quit")
	go stop()
	for range 3 {
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	}
	if e := wait(t, i); e.Reason != Killed || e.Killed || e.ExitCode() != 0 {
		t.Errorf("ended as %+v with code %d, want killed and 0", e, e.ExitCode())
	}
}

func TestKill(t *testing.T) {
	i := newFixture(t, "serve").launch(t)
	if err := errors.Join(i.Kill(), i.Kill()); err != nil {
		t.Fatal(err)
	}
	if e := wait(t, i); e.Reason != Killed || e.ExitCode() != 137 || e.Err() != nil {
		t.Errorf("ended as %+v with code %d, want killed and 137", e, e.ExitCode())
	}
	if err := errors.Join(i.Kill(), i.Stop(t.Context(), 0)); err != nil {
		t.Errorf("after the end: %v", err)
	}
}

// The guest's exit code stands if the command ended before Stop, and not if it
// was Stop that ended it.
func TestStopAndExit(t *testing.T) {
	for want, before := range map[int]bool{3: true, 0: false} {
		i := newFixture(t, "serve").micro().launch(t)
		if before {
			i.guestExited(3)
		}
		if err := i.Stop(t.Context(), time.Hour); err != nil {
			t.Fatal(err)
		}
		wait(t, i)
		if !before {
			i.guestExited(3)
		}
		if e := wait(t, i); e.ExitCode() != want || e.Stopped == before {
			t.Errorf("ended as %+v with code %d, want %d", e, e.ExitCode(), want)
		}
	}
}

// awaitLine reads a console until a line has come.
func awaitLine(t *testing.T, c *Console, line string) {
	t.Helper()
	text, buf := "", make([]byte, 4<<10)
	for !strings.Contains(text, line+"\n") {
		n, err := c.Read(buf)
		if err != nil {
			t.Fatalf("wait for line %q: %v after %q", line, err, text)
		}
		text += string(buf[:n])
	}
}
