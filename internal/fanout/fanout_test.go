package fanout

import (
	"fmt"
	"slices"
	"testing"
)

func newFanout() *Fanout[string] {
	return &Fanout[string]{Missed: func(next string, count int) string { return fmt.Sprintf("%d before %s", count, next) }}
}

// queued is what a listener has to take, and "end" where nothing comes after it.
func queued(l *Listener[string]) []string {
	var all []string
	for {
		select {
		case e, more := <-l.Events():
			if !more {
				return append(all, "end")
			}
			all = append(all, e)
		default:
			return all
		}
	}
}

// A listener that does not keep up misses some, is told how many once it has taken
// half of what it had, and holds up nobody.
func TestSlowListener(t *testing.T) {
	const missed = 44
	f := newFanout()
	slow, quick := f.Listen(), f.Listen()
	for i := range maxQueued + missed {
		e := fmt.Sprint(i)
		f.Tell(e)
		if got := <-quick.Events(); got != e {
			t.Fatalf("heard %s, want %s", got, e)
		}
	}
	take := func(count int) (last string) {
		for range count {
			last = <-slow.Events()
		}
		return last
	}
	if last := take(maxQueued / 2); last != fmt.Sprint(maxQueued/2-1) {
		t.Errorf("heard %s", last)
	}
	f.Tell("early")
	take(1)
	f.Tell("late")
	take(maxQueued/2 - 1)
	if got, want := queued(slow), []string{fmt.Sprint(missed+1, " before late"), "late"}; !slices.Equal(got, want) {
		t.Errorf("heard %v, want %v", got, want)
	}
}

// Who listens no more, or at the end, still hears what was told before.
func TestEnd(t *testing.T) {
	f := newFanout()
	stays, goes := f.Listen(), f.Listen()
	f.Tell("one")
	goes.Close()
	f.Tell("two")
	f.Close()
	stays.Close()
	goes.Close()
	f.Tell("three")
	for l, want := range map[*Listener[string]][]string{stays: {"one", "two", "end"}, goes: {"one", "end"}, f.Listen(): {"end"}} {
		if got := queued(l); !slices.Equal(got, want) {
			t.Errorf("heard %v, want %v", got, want)
		}
	}
}

// Who comes late hears what is remembered, if it is wanted, and then the rest.
func TestListenSince(t *testing.T) {
	f := newFanout()
	f.Remembers = 3
	for _, e := range []string{"a", "b", "c", "d", "e"} {
		f.Tell(e)
	}
	late := f.ListenSince(func(e string) bool { return e != "d" })
	f.Tell("f")
	if got, want := queued(late), []string{"c", "e", "f"}; !slices.Equal(got, want) {
		t.Errorf("heard %v, want %v", got, want)
	}
	if got := queued(f.Listen()); got != nil {
		t.Errorf("who listens from now on heard %v", got)
	}
	f.Close()
	if got, want := queued(f.ListenSince(func(string) bool { return true })), []string{"d", "e", "f", "end"}; !slices.Equal(got, want) {
		t.Errorf("heard %v, want %v", got, want)
	}
}
