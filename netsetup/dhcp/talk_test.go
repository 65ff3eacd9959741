package dhcp

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

// TestTalk: what a port and the server say is counted, refusals too, and what
// others say is not.
func TestTalk(t *testing.T) {
	w := newWorld(t)
	a, stranger := client(1), client(2)
	if got := w.server.Talk(a[:]); got != (Talk{}) {
		t.Errorf("before a word: %+v", got)
	}
	w.reserve(a, "10.70.0.10", "web")
	w.send(discover(a))
	if w.leases.Bound(a[:]) {
		t.Error("an offer counts as taken")
	}
	w.send(selecting(a, ip("10.70.0.11"))) // not its own
	w.send(newPacket(a, dhcpv4.MessageTypeRelease))
	w.send(discover(stranger))
	want := Talk{Asked: 3, Answered: 2, Refused: 1, Last: "RELEASE", At: w.clock.now()}
	if diff := cmp.Diff(want, w.server.Talk(a[:])); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := w.server.Talk(stranger[:]); got != (Talk{}) {
		t.Errorf("a stranger's: %+v", got)
	}
	w.send(selecting(a, ip("10.70.0.10")))
	if !w.leases.Bound(a[:]) {
		t.Error("the address was taken and is not bound")
	}
	w.server.Forget(a[:])
	if got := w.server.Talk(a[:]); got != (Talk{}) {
		t.Errorf("forgotten: %+v", got)
	}
}
