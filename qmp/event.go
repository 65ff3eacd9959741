package qmp

import (
	"encoding/json"
	"sync"
	"time"
)

// Event is something that happened in QEMU, such as SHUTDOWN.
type Event struct {
	// Name is the event's name as in QEMU's QMP reference.
	Name string
	// Data is a JSON object, or nil where the event carries none.
	Data json.RawMessage
	// Time is when it happened by the host's clock; zero where QEMU gave no time.
	Time time.Time
}

// Subscribe returns the events from now on, in QEMU's order. What was sent
// before is not repeated: who must miss nothing starts QEMU paused (-S) and
// subscribes before the cont command.
//
// Each subscriber has a queue of its own without bound, so a slow reader holds
// up neither commands nor other subscribers; it costs memory, some 200 bytes
// and the event's data for each event not yet received. When the connection
// ends, the channel still yields what is queued and is then closed. Cancel, or
// the client's Close, drops what is queued and closes the channel; cancel may
// be called any number of times and from any goroutine.
//
// An event that QEMU sends before a command's reply is in the queue before Run
// returns. QEMU may as well send it first although the command caused it, as
// SHUTDOWN on quit.
func (c *Client) Subscribe() (events <-chan Event, cancel func()) {
	s := &subscription{
		out:  make(chan Event),
		wake: make(chan struct{}, 1),
		stop: make(chan struct{}),
	}
	s.cancel = sync.OnceFunc(func() { close(s.stop) })

	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		close(s.out)
		return s.out, s.cancel
	}
	c.subscriptions[s] = struct{}{}
	c.goroutines.Go(s.pump)
	return s.out, func() { c.unsubscribe(s) }
}

func (c *Client) unsubscribe(s *subscription) {
	c.mu.Lock()
	delete(c.subscriptions, s)
	c.mu.Unlock()
	s.cancel()
}

func (c *Client) publish(e Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.subscriptions {
		s.push(e)
	}
}

// subscription is one subscriber's queue and the goroutine that empties it.
type subscription struct {
	out    chan Event
	wake   chan struct{} // holds one token when the queue or ended has changed
	stop   chan struct{} // closed by cancel
	cancel func()

	mu    sync.Mutex
	queue []Event
	ended bool // nothing is pushed any more
}

func (s *subscription) push(e Event) {
	s.mu.Lock()
	s.queue = append(s.queue, e)
	s.mu.Unlock()
	s.signal()
}

func (s *subscription) end() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.signal()
}

func (s *subscription) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *subscription) take() (batch []Event, ended bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	batch, s.queue = s.queue, nil
	return batch, s.ended
}

// pump hands the queue to the subscriber until it is empty for good.
func (s *subscription) pump() {
	defer close(s.out)
	for {
		batch, ended := s.take()
		for _, e := range batch {
			select {
			case s.out <- e:
			case <-s.stop:
				return
			}
		}
		if ended {
			return
		}
		select {
		case <-s.wake:
		case <-s.stop:
			return
		}
	}
}
