package netsetup

import (
	"context"
	"net"
	"time"

	"github.com/vmrun/vmrun/internal/fanout"
)

// rememberedEvents is how many events a keeper remembers for who follows its network
// only when it learns of it.
const rememberedEvents = 128

// tellEvent tells those who follow the network.
func (k *keeper) tellEvent(kind EventKind, vm string, detail EventDetail) {
	detail.Network = k.network.Name
	k.followers.Tell(Event{Time: time.Now(), Kind: kind, VM: vm, Data: detail})
}

// tellPort tells an event of a port.
func (k *keeper) tellPort(kind EventKind, h *holding) {
	nic, mac, members := h.Spec.NIC, h.Spec.MAC, len(k.ports)
	k.tellEvent(kind, h.Spec.VM, EventDetail{NIC: &nic, MAC: &mac, IP: h.IP, Link: h.Link, Members: &members})
}

// serveFollower tells somebody what happens until they go, or the network does.
// They are no member.
func (k *keeper) serveFollower(ctx context.Context, conn *net.UnixConn, who peer, r request) {
	say := func(answer reply) error {
		answer.Protocol = protocolVersion
		conn.SetWriteDeadline(time.Now().Add(answerTimeout))
		return send(conn, answer, nil)
	}
	one, refused := k.follow(who, r)
	if refused != nil {
		say(reply{Refused: refused}) // or who asked is gone
		return
	}
	defer one.Close()
	defer context.AfterFunc(ctx, one.Close)()
	go func() {
		k.awaitDetach(conn)
		one.Close() // what has happened before is said yet
	}()
	if say(reply{Following: true}) != nil {
		return
	}
	for e := range one.Events() {
		if say(reply{Event: &e}) != nil {
			return
		}
	}
}

func (k *keeper) follow(who peer, r request) (*fanout.Listener[Event], *refusal) {
	k.enter()
	defer k.exit()
	if why := k.refuses(who, r); why != "" {
		return nil, &refusal{Text: why}
	}
	if k.phase != up {
		return nil, &refusal{Text: notUp}
	}
	if r.Since.IsZero() {
		return k.followers.Listen(), nil
	}
	return k.followers.ListenSince(func(e Event) bool { return e.Time.After(r.Since) }), nil
}
