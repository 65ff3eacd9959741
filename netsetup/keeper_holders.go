package netsetup

import (
	"net"
	"path/filepath"
	"slices"
	"time"
)

// hold is a holder's: the connection that keeps the network up without a VM.
type hold struct {
	id       string
	peer     peer
	group    *Group
	since    time.Time
	conn     *net.UnixConn
	draining bool // it goes with the last member
}

// idle tells whether nobody is left who wants the network.
func (k *keeper) idle() bool { return len(k.ports) == 0 && (k.held == nil || k.held.draining) }

// opened is the group that root has opened the network to; nil: none.
func (k *keeper) opened() *Group {
	if k.held == nil {
		return k.adopted
	}
	return k.held.group
}

// takeHold makes a connection the network's holder, bringing the network up if
// nobody else has. There is one at most: a second one learns that it is up.
func (k *keeper) takeHold(conn *net.UnixConn, who peer, r holdRequest) reply {
	if r.Again {
		if over := k.recall(&r); over != nil {
			return reply{Down: over}
		}
	}
	if k.phase == fresh {
		if err := k.bringUp(r.Net); err != nil {
			return reply{Refused: newRefusal(err)}
		}
	}
	if err := k.network.Spec.unlike(r.Net); err != nil {
		return reply{Refused: newRefusal(err)}
	}
	if err := k.checkBridge(); err != nil && !r.Again {
		return reply{Refused: newRefusal(err)}
	}
	old := k.held
	if old != nil && old.id != r.ID && !old.draining {
		if !sameGroup(old.group, r.Group) {
			return reply{Refused: newRefusal(conflict("group", "%s is up and open to %s; take it down first to open it to %s",
				r.Net.Name, old.group.describe(), r.Group.describe()))}
		}
		return reply{Held: &heldReply{Already: true}}
	}
	since := k.heldSince(r.ID)
	if err := (holdMark{r.ID, since, r.Draining}).save(k.dir); err != nil {
		return reply{Refused: newRefusal(err)}
	}
	k.held = &hold{id: r.ID, peer: who, group: r.Group, since: since, conn: conn, draining: r.Draining}
	if old != nil && old.id != r.ID { // one that is going: somebody wants the network after all
		k.tell(old.conn, reply{Down: &downReply{Replaced: true}})
	}
	k.adopted = nil
	k.saveOpened()
	k.log.Info("held", "pid", who.pid, "uid", who.uid, "group", r.Group.describe())
	return reply{Held: &heldReply{}}
}

// heldSince is when a hold began: with now, unless this keeper or one before it has
// granted it already.
func (k *keeper) heldSince(id string) time.Time {
	m, err := loadHold(k.dir)
	if err != nil || m == nil || m.ID != id || m.Since.IsZero() {
		return time.Now().UTC()
	}
	return m.Since
}

// recall finds out whether a holder that comes back still has the hold, and
// whether the network goes down; else it returns what to tell it.
func (k *keeper) recall(r *holdRequest) *downReply {
	m, err := loadHold(k.dir)
	switch {
	case err != nil:
		return &downReply{Errors: err.Error()}
	case m == nil:
		return &downReply{}
	case m.ID != r.ID:
		return &downReply{Replaced: true}
	}
	r.Draining = r.Draining || m.Draining
	if k.phase == fresh && r.Draining { // the last member has gone
		return k.forgetHold()
	}
	return nil
}

// forgetHold ends a hold whose network is gone.
func (k *keeper) forgetHold() *downReply {
	if err := removeHold(k.dir); err != nil {
		return &downReply{Errors: err.Error()}
	}
	return &downReply{}
}

func sameGroup(a, b *Group) bool { return a == b || a != nil && b != nil && a.ID == b.ID }

func (g *Group) describe() string {
	if g == nil {
		return "root alone"
	}
	return "group " + g.Name
}

// saveOpened keeps what a new keeper and its starter have to know of the group.
func (k *keeper) saveOpened() {
	if err := k.saveSpec(); err != nil {
		k.log.Error("note the network's group", "cause", err)
	}
}

// endHold is the holder's end: asked for it goes with the last member, dead it
// is gone at once.
func (k *keeper) endHold(conn *net.UnixConn, polite bool) {
	k.enter()
	defer k.exit()
	if k.held == nil || k.held.conn != conn {
		return // another one has taken over
	}
	k.log.Info("holder leaves", "polite", polite, "members", len(k.ports))
	if polite {
		k.drain()
		return
	}
	k.held = nil
	if err := removeHold(k.dir); err != nil {
		k.log.Warn("forget the holder", "cause", err)
	}
	if k.phase == up {
		k.saveOpened() // the group loses its access with its holder
	}
	k.endIfIdle()
}

// down takes the network down if no VM is on it. Else it goes with the last
// one, and the answer says which there are. Where the network is not there, a
// holder may be on its way back to bring it up.
func (k *keeper) down() reply {
	switch m, err := loadHold(k.dir); {
	case k.phase == closing:
		return reply{Closing: true}
	case k.phase == up:
		return reply{Down: k.drain()}
	case m == nil && err == nil:
		return reply{Closing: true}
	}
	return reply{Down: k.forgetHold()}
}

// drain lets the holder go with the last member, or at once, and tells it. One
// that is not back yet since a keeper's death hears it then.
func (k *keeper) drain() *downReply {
	k.awaitRemovals("")
	if _, err := drainHold(k.dir); err != nil {
		return &downReply{Errors: err.Error()}
	}
	if k.held != nil {
		k.held.draining = true
	}
	if k.idle() {
		k.endIfIdle()
		return &downReply{Errors: k.result.Errors}
	}
	answer := &downReply{Members: k.vms()}
	if k.held != nil {
		k.tell(k.held.conn, reply{Down: answer})
	}
	return answer
}

// endIfIdle takes the network down when nobody wants it any more, and tells a
// holder that was to go with it.
func (k *keeper) endIfIdle() {
	if !k.idle() {
		return
	}
	k.awaitRemovals("") // which lets others in
	if !k.idle() || k.phase == closing {
		return
	}
	held := k.held
	k.held, k.adopted = nil, nil
	k.result = k.teardown()
	if err := settleHold(k.dir); err != nil {
		k.log.Warn("forget the holder", "cause", err)
	}
	if held != nil {
		k.tell(held.conn, reply{Down: &downReply{Errors: k.result.Errors}})
	}
}

// tell sends a message that its reader may be too slow for.
func (k *keeper) tell(conn *net.UnixConn, answer reply) {
	answer.Protocol = protocolVersion
	conn.SetWriteDeadline(time.Now().Add(answerTimeout))
	if err := send(conn, answer, nil); err != nil {
		k.log.Warn("answer", "cause", err)
	}
}

// vms are the names of the VMs that are on the network, each once.
func (k *keeper) vms() []string {
	var names []string
	for _, h := range k.ports {
		if !slices.Contains(names, h.Spec.VM) {
			names = append(names, h.Spec.VM)
		}
	}
	slices.Sort(names)
	return names
}

// savedGroup is the group that a network in dir was opened to when its keeper
// died.
func savedGroup(dir string) *Group {
	saved, err := loadSpec(filepath.Join(dir, specName))
	if err != nil {
		return nil
	}
	return saved.Group
}
