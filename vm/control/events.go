package control

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"time"

	"github.com/vmrun/vmrun/internal/fanout"
	"github.com/vmrun/vmrun/qmp"
	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/wire"
)

// Event is something that happened to a machine.
type Event struct {
	Time   time.Time       `json:"time"`
	VM     string          `json:"vm"`
	Source string          `json:"source"` // qmp, network or vmrun
	Event  string          `json:"event"`  // QEMU's name, or vmrun's
	Data   json.RawMessage `json:"data,omitempty"`
}

// Events of vmrun's after which a machine may be on networks that it was not on before.
const (
	EventAttached = "ATTACHED" // it was given a device
	EventMissed   = "MISSED"   // who listens was too slow
)

// Feed passes a machine's events on to any number of listeners. One that does
// not keep up misses some, and is told how many.
type Feed struct {
	vm     string
	events fanout.Fanout[Event]
}

// NewFeed makes the feed of a machine.
func NewFeed(name string) *Feed {
	return &Feed{vm: name, events: fanout.Fanout[Event]{Missed: missedEvents}}
}

// missedEvents tells a listener of events that it has missed.
func missedEvents(next Event, count int) Event {
	data, _ := json.Marshal(map[string]int{"count": count})
	return Event{Time: next.Time, VM: next.VM, Source: "vmrun", Event: EventMissed, Data: data}
}

func (f *Feed) publish(source, name string, at time.Time, data any) {
	raw, ok := data.(json.RawMessage)
	if !ok {
		raw, _ = json.Marshal(data) // of our own types, which always can be
	}
	f.events.Tell(Event{Time: at, VM: f.vm, Source: source, Event: name, Data: raw})
}

// relay publishes QEMU's events.
func (f *Feed) relay(events <-chan qmp.Event) {
	for e := range events {
		at := e.Time
		if at.IsZero() {
			at = time.Now()
		}
		f.publish("qmp", e.Name, at, e.Data)
	}
}

// Handler is a logger's that publishes all records about networks, those with an
// attribute of that name, and passes the others and these on to next.
func (f *Feed) Handler(next slog.Handler) slog.Handler { return &tee{feed: f, next: next} }

type tee struct {
	feed  *Feed
	next  slog.Handler
	attrs []slog.Attr
}

// Enabled implements slog.Handler: what next does not want the feed may.
func (t *tee) Enabled(context.Context, slog.Level) bool { return true }

// Handle implements slog.Handler.
func (t *tee) Handle(ctx context.Context, r slog.Record) error {
	data := map[string]any{"message": r.Message}
	for _, a := range t.attrs {
		data[a.Key] = a.Value.String()
	}
	r.Attrs(func(a slog.Attr) bool {
		data[a.Key] = a.Value.String()
		return true
	})
	if _, ok := data["network"]; ok {
		t.feed.publish("network", networkEvent(r), r.Time, data)
	}
	if !t.next.Enabled(ctx, r.Level) {
		return nil
	}
	return t.next.Handle(ctx, r)
}

// networkEvent is the name of an event that a record tells.
func networkEvent(r slog.Record) string {
	name := "NOTE"
	if r.Level >= slog.LevelWarn {
		name = "TROUBLE"
	}
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "ip" {
			name = "ADDRESS"
		}
		return true
	})
	return name
}

// WithAttrs implements slog.Handler.
func (t *tee) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &tee{t.feed, t.next.WithAttrs(attrs), append(t.attrs[:len(t.attrs):len(t.attrs)], attrs...)}
}

// WithGroup implements slog.Handler. Groups are for next alone.
func (t *tee) WithGroup(name string) slog.Handler {
	return &tee{t.feed, t.next.WithGroup(name), t.attrs}
}

// events sends events until the machine's last. It listens before it says that
// the stream is open.
func (s *Server) events(ctx context.Context, c *wire.Call) (any, error) {
	l := s.feed.events.Listen()
	defer l.Close()
	st, err := c.Start()
	if err != nil {
		return nil, err
	}
	for {
		select {
		case e, more := <-l.Events():
			if !more {
				return nil, nil
			}
			if err := st.Send(e); err != nil {
				return nil, err
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Listen calls f with each event of a machine until its end, or until ctx's,
// which is no error. Ready, if it is not nil, is called once, when from then on
// nothing is missed.
func Listen(ctx context.Context, m vm.Machine, ready func(), f func(Event) error) error {
	s, err := start(ctx, m, wire.Request{Verb: "events"})
	if err != nil {
		return err
	}
	defer s.Close()
	if ready != nil {
		ready()
	}
	for {
		p, err := s.Receive()
		if done, ok := errors.AsType[*wire.Done](err); ok && done.Err == nil || ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return Explain(ctx, m, err)
		}
		var e Event
		err = p.Decode(&e)
		p.Close()
		if err == nil {
			err = f(e)
		}
		if err != nil {
			return err
		}
	}
}
