package netsetup

import (
	"net/netip"
	"time"
)

// Event is something that happened to a network in use.
type Event struct {
	Time time.Time   `json:"time"`
	Kind EventKind   `json:"event"`
	VM   string      `json:"vm,omitempty"` // whose port it is about; "": the network as a whole
	Data EventDetail `json:"data"`
}

// EventDetail is more about an event; what its kind has no use for is absent.
type EventDetail struct {
	Network string     `json:"network"` // its name
	NIC     *int       `json:"nic,omitempty"`
	MAC     *MAC       `json:"mac,omitempty"`
	IP      netip.Addr `json:"ip,omitzero"`
	Link    string     `json:"link,omitempty"`    // the port's TAP
	Members *int       `json:"members,omitempty"` // NICs on the network, afterwards
	Count   int        `json:"count,omitempty"`   // of events that were missed
	Text    string     `json:"text,omitempty"`    // for people
}

// EventKind is what has happened, as a word that programs can rely on.
type EventKind string

// The kinds of events. Those of a keeper's end are told by Follow.
const (
	Joined     EventKind = "JOINED"   // a port was opened
	Left       EventKind = "LEFT"     // it is gone
	Leased     EventKind = "LEASED"   // a guest was given an address; renewals are not told
	Restored   EventKind = "RESTORED" // rules that somebody took away are back
	Mended     EventKind = "MENDED"   // so is what was taken from its links
	Broke      EventKind = "BROKEN"   // its bridge is gone
	KeeperDied EventKind = "KEEPER_GONE"
	Adopted    EventKind = "ADOPTED" // another keeper has taken over
	WentDown   EventKind = "DOWN"    // the network is gone
	Missed     EventKind = "MISSED"  // who listens was too slow
)

// missedEvents tells who follows a network of events that it has missed.
func missedEvents(next Event, count int) Event {
	return Event{Time: next.Time, Kind: Missed, Data: EventDetail{Network: next.Data.Network, Count: count}}
}
