package netsetup

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"
)

// heard is what a follower is told, event by event.
type heard struct {
	t      *testing.T
	name   string // the network's
	events chan Event
	err    chan error
	stop   context.CancelFunc
}

// follows follows a network, from when it returns on.
func follows(t *testing.T, h Host, spec Spec) *heard {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	f := &heard{t: t, name: spec.Name, events: make(chan Event, 1000), err: make(chan error, 1), stop: cancel}
	ready := make(chan struct{})
	go func() {
		f.err <- Follow(ctx, h, spec, FollowOptions{Ready: func() { close(ready) }}, func(e Event) error {
			f.events <- e
			return nil
		})
		close(f.events)
	}()
	select {
	case <-ready:
	case err := <-f.err:
		t.Fatalf("%v\n%s", err, keeperLogs(h))
	}
	t.Cleanup(cancel)
	return f
}

// next waits for an event, which has to be of a kind.
func (f *heard) next(kind EventKind) Event {
	f.t.Helper()
	select {
	case e := <-f.events:
		if e.Kind != kind || e.Data.Network != f.name || e.Time.IsZero() {
			f.t.Errorf("heard %+v, want %s", e, kind)
		}
		return e
	case <-time.After(time.Minute):
		f.t.Fatalf("nothing is heard, want %s", kind)
	}
	return Event{}
}

// Whoever follows a network hears of its ports, of rules that are put back, of a
// keeper's death and the next one, and of the end.
func TestFollow(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	uplinks(t)
	h, spec := testHost(t), specs()["nat"]
	ctx := context.Background()
	if err := Follow(ctx, h, spec, FollowOptions{}, nil); !errors.As(err, new(*NotFoundError)) {
		t.Errorf("a network that is not in use: %v", err)
	}
	if err := StartHolder(ctx, h, spec, nil); err != nil {
		t.Fatal(err)
	}
	all, some := follows(t, h, spec), follows(t, h, spec)
	port := testPort()
	p, err := Attach(ctx, h, spec, port)
	if err != nil {
		t.Fatal(err)
	}
	e := all.next(Joined)
	if e.VM != port.VM || *e.Data.NIC != port.NIC || *e.Data.MAC != port.MAC || e.Data.IP != p.IP() || e.Data.Link != p.Link() || *e.Data.Members != 1 {
		t.Errorf("heard %+v %+v of %+v", e, e.Data, p)
	}
	// Who comes late hears what has happened since a time.
	for since, hears := range map[time.Time]bool{e.Time.Add(-time.Nanosecond): true, e.Time: false} {
		var late []EventKind
		enough := errors.New("enough")
		ctx, cancel := context.WithCancel(ctx)
		err := Follow(ctx, h, spec, FollowOptions{Since: since, Ready: cancel}, func(e Event) error {
			late = append(late, e.Kind)
			return enough
		})
		if errors.Is(err, enough) != hears || !slices.Equal(late, []EventKind{Joined}[:len(late)]) {
			t.Errorf("since %v, heard %v, %v", since, late, err)
		}
		cancel()
	}
	// Who goes hears what has happened before.
	some.stop()
	if err := <-some.err; err != nil {
		t.Error(err)
	}
	some.next(Joined)
	shell(t, "nft flush ruleset")
	all.next(Restored)
	kill(t, only(t))
	all.next(KeeperDied)
	all.next(Adopted)
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if e := all.next(Left); e.VM != port.VM || *e.Data.Members != 0 {
		t.Errorf("heard %+v %+v", e, e.Data)
	}
	if err := Down(ctx, h, spec.Name, spec.Dir); err != nil {
		t.Error(err)
	}
	all.next(WentDown)
	if err := <-all.err; err != nil {
		t.Error(err)
	}
	awaitAlone(t)
}

// With the last member's port goes the network, and its followers hear of both.
func TestFollowLastMember(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	h, spec := testHost(t), specs()["host-only"]
	for range 10 {
		p, err := Attach(context.Background(), h, spec, testPort())
		if err != nil {
			t.Fatal(err)
		}
		f := follows(t, h, spec)
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		f.next(Left)
		f.next(WentDown)
		if err := <-f.err; err != nil {
			t.Error(err)
		}
	}
	awaitAlone(t)
}

// A follower that does not keep up is told how much it has missed of which network.
func TestSlowFollower(t *testing.T) {
	k, _ := fakeKeeper(t)
	k.network.Name = "lan"
	slow := k.followers.Listen()
	const told = 1000
	for range told {
		k.tellEvent(Joined, "web", EventDetail{})
	}
	heard := 0
	for len(slow.Events()) > 0 {
		heard++
		if e := <-slow.Events(); e.Kind != Joined || e.VM != "web" || e.Data.Network != "lan" {
			t.Fatalf("heard %+v", e)
		}
	}
	k.tellEvent(Left, "web", EventDetail{})
	if e := <-slow.Events(); e.Kind != Missed || e.VM != "" || e.Data.Network != "lan" || heard == 0 || e.Data.Count != told-heard {
		t.Errorf("heard %+v after %d of %d events", e, heard, told)
	}
	if e := <-slow.Events(); e.Kind != Left {
		t.Errorf("heard %+v", e)
	}
}
