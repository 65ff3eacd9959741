package dhcp

import (
	"net"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// Talk is what a port and the server have said to each other: it tells a guest
// that never asked from one that was not answered, and that from one that did not
// hear the answer.
type Talk struct {
	Asked    int       `json:"asked"`    // messages that the guest sent
	Answered int       `json:"answered"` // those that were answered, refusals included
	Refused  int       `json:"refused"`  // DHCPNAK
	Last     string    `json:"last,omitempty"`
	At       time.Time `json:"at,omitzero"` // of the last message
}

// talks keeps count for the ports of a network.
type talks struct {
	mu sync.Mutex
	of map[mac]Talk
}

// note counts a port's message and what it was answered.
func (t *talks) note(client mac, kind dhcpv4.MessageType, answer reply, answered bool, at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.of == nil {
		t.of = map[mac]Talk{}
	}
	talk := t.of[client]
	talk.Asked++
	talk.Last, talk.At = kind.String(), at
	if answered {
		talk.Answered++
		if answer.kind == dhcpv4.MessageTypeNak {
			talk.Refused++
		}
	}
	t.of[client] = talk
}

// Talk is what the server and a port have said to each other; zero for whoever is
// no port, or has not said a word.
func (s *Server) Talk(port net.HardwareAddr) Talk {
	m, err := parseMAC(port)
	if err != nil {
		return Talk{}
	}
	s.talks.mu.Lock()
	defer s.talks.mu.Unlock()
	return s.talks.of[m]
}

// Forget begins a port's count anew.
func (s *Server) Forget(port net.HardwareAddr) {
	m, err := parseMAC(port)
	if err != nil {
		return
	}
	s.talks.mu.Lock()
	defer s.talks.mu.Unlock()
	delete(s.talks.of, m)
}
