package netsetup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"time"
)

// FollowOptions say from when on Follow tells.
type FollowOptions struct {
	Since time.Time // what happened after it, as far as the last 128 events go; zero: nothing before Ready
	Ready func()    // is called when from then on nothing is missed; nil: nobody wants to know
}

// Follow calls f with what happens to a network that is in use, until it goes
// down, which is the last event, or until ctx ends: then with what has happened
// so far. Where the keeper dies the next one is waited for. An error is f's, or
// tells why nothing is heard; that of a network that is not in use is a
// *NotFoundError.
func Follow(ctx context.Context, h Host, spec Spec, o FollowOptions, f func(Event) error) error {
	g := &following{name: spec.Name, since: o.Since, ready: o.Ready, tell: f}
	g.dir, _ = h.folder(spec)
	for {
		again, err := g.hear(ctx)
		switch {
		case err != nil:
			return fmt.Errorf("follow network %s: %w", spec.Name, err)
		case !again:
			return nil
		}
	}
}

// following is one Follow.
type following struct {
	dir   string
	name  string
	since time.Time // of the last event that was told, or from when on they are wanted
	ready func()
	tell  func(Event) error
	began bool // a keeper was heard
	alone bool // it has died, and no other was heard yet
}

// lastEvents is how long a keeper has to say what happened before we go.
const lastEvents = time.Second

func (g *following) note(kind EventKind) error {
	return g.tell(Event{Time: time.Now(), Kind: kind, Data: EventDetail{Network: g.name}})
}

// hear listens to one keeper, and when that has died waits for the next.
func (g *following) hear(ctx context.Context) (again bool, err error) {
	path := filepath.Join(g.dir, socketName)
	changed, stop, err := watchFile(path)
	switch {
	case err == nil:
		defer stop()
	case !errors.Is(err, fs.ErrNotExist):
		return false, guestError(path, err)
	}
	conn, err := dialKeeper(g.dir)
	if err == nil {
		err = g.listen(ctx, conn)
	}
	missing := errors.As(err, new(*NotFoundError))
	switch {
	case ctx.Err() != nil && (err == nil || hungUp(err)):
		return false, nil
	case !missing && !nobodyListens(err) && !hungUp(err):
		return false, guestError(path, err)
	}
	_, lost := readDead(g.dir)
	switch {
	case !missing && lost == nil && changed != nil:
		return g.awaitNext(ctx, changed)
	case !g.began:
		return false, notInUse(g.dir)
	}
	return false, g.note(WentDown)
}

// awaitNext waits for another keeper's socket in the place of a dead one's.
func (g *following) awaitNext(ctx context.Context, changed <-chan struct{}) (again bool, err error) {
	if g.began && !g.alone {
		g.alone = true
		if err := g.note(KeeperDied); err != nil {
			return false, err
		}
	}
	select {
	case <-changed:
		return true, nil
	case <-ctx.Done():
		return false, nil
	}
}

// listen passes on what a keeper says until it goes.
func (g *following) listen(ctx context.Context, conn *net.UnixConn) error {
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(closingTimeout))
	defer context.AfterFunc(ctx, func() {
		conn.CloseWrite() // the keeper says the rest, and hangs up
		conn.SetReadDeadline(time.Now().Add(lastEvents))
	})()
	if err := send(conn, request{Protocol: protocolVersion, Follow: true, Since: g.since}, nil); err != nil {
		return err
	}
	for {
		answer, err := receiveAnswer(conn)
		switch {
		case err != nil:
			return err
		case answer.Refused != nil && answer.Refused.Text == notUp:
			return notInUse(g.dir)
		case answer.Refused != nil:
			return answer.Refused.err()
		case answer.Following:
			err = g.begin(ctx, conn)
		case answer.Event != nil:
			g.since = answer.Event.Time
			err = g.tell(*answer.Event)
		}
		if err != nil {
			return err
		}
	}
}

// begin notes that a keeper tells everything from now on.
func (g *following) begin(ctx context.Context, conn *net.UnixConn) error {
	if ctx.Err() == nil {
		conn.SetReadDeadline(time.Time{})
	}
	if !g.began && g.ready != nil {
		g.ready()
	}
	if g.since.IsZero() {
		g.since = time.Now() // before anything that the next keeper has to tell
	}
	g.began = true
	if !g.alone {
		return nil
	}
	g.alone = false
	return g.note(Adopted)
}
