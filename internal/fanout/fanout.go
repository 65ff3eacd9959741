// Package fanout passes what happens on to any number of listeners, none of whom is
// waited for.
package fanout

import (
	"slices"
	"sync"
)

// Fanout passes events on. It may be used by several goroutines.
type Fanout[E any] struct {
	// Missed makes the event that is told in the place of so many that a listener
	// has missed, right before the next one.
	Missed func(next E, count int) E
	// Remembers is how many of the last events are kept for ListenSince.
	Remembers int

	mu        sync.Mutex
	listeners map[*Listener[E]]struct{}
	past      []E // the oldest first
	closed    bool
}

// Listener is one listener's queue. One that does not keep up misses some events,
// and is told how many.
type Listener[E any] struct {
	fanout *Fanout[E]
	events chan E
	missed int
}

// maxQueued is how many events may wait for one listener.
const maxQueued = 256

// Listen adds a listener, who hears what is told from now on. The caller closes it.
func (f *Fanout[E]) Listen() *Listener[E] {
	return f.ListenSince(func(E) bool { return false })
}

// ListenSince is Listen for who first hears those of the last events that are wanted.
func (f *Fanout[E]) ListenSince(wanted func(E) bool) *Listener[E] {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := &Listener[E]{fanout: f, events: make(chan E, maxQueued)}
	for _, e := range f.past {
		if wanted(e) {
			l.push(e)
		}
	}
	if f.closed {
		close(l.events)
		return l
	}
	if f.listeners == nil {
		f.listeners = map[*Listener[E]]struct{}{}
	}
	f.listeners[l] = struct{}{}
	return l
}

// Tell tells all listeners an event.
func (f *Fanout[E]) Tell(e E) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for l := range f.listeners {
		l.push(e)
	}
	if f.Remembers > 0 {
		f.past = append(slices.Delete(f.past, 0, max(0, len(f.past)-f.Remembers+1)), e)
	}
}

// Close closes all listeners, those that come later too.
func (f *Fanout[E]) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for l := range f.listeners {
		l.end()
	}
}

// Events are those that are told. The channel is closed after the last one.
func (l *Listener[E]) Events() <-chan E { return l.events }

// Close ends what is told: there is what is queued, and no more. Further calls do
// nothing.
func (l *Listener[E]) Close() {
	l.fanout.mu.Lock()
	defer l.fanout.mu.Unlock()
	if _, listens := l.fanout.listeners[l]; listens {
		l.end()
	}
}

// end ends a listener, under the mutex.
func (l *Listener[E]) end() {
	delete(l.fanout.listeners, l)
	close(l.events)
}

// push queues an event, with what was missed before it, or counts it as missed,
// under the mutex. Room for half of the queue keeps the words of it few.
func (l *Listener[E]) push(e E) {
	if l.missed > 0 && len(l.events) < maxQueued/2 {
		l.events <- l.fanout.Missed(e, l.missed)
		l.missed = 0
	}
	if l.missed > 0 || len(l.events) == maxQueued {
		l.missed++
		return
	}
	l.events <- e
}
