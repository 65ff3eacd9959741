package netsetup

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// refusals are requests of a group's member that ask for more than a port.
var refusals = []struct {
	name string
	edit func(*attachRequest)
	want string
}{
	{"another definition", func(r *attachRequest) { r.Net.MTU = 9000 }, "with another definition: mtu"},
	{"another network", func(r *attachRequest) { r.Net.Name = "other" }, "with another definition: name"},
	{"trunk", func(r *attachRequest) { r.Port.Trunk = true }, "only root may let a VM send tagged frames"},
	{"spoof", func(r *attachRequest) { r.Port.Spoof = true }, "only root may let a VM send from any MAC"},
	{"queues", func(r *attachRequest) { r.Port.Queues = 17 }, "more than 16 are for root"},
	{"queues", func(r *attachRequest) { r.Port.Queues = -1 }, "out of range"},
	{"name", func(r *attachRequest) { r.Port.VM = "../../etc" }, "is no name of a VM"},
	{"name", func(r *attachRequest) { r.Port.VM = "a\nb" }, "is no name of a VM"},
	{"name", func(r *attachRequest) { r.Port.VM = strings.Repeat("a", 64) }, "is no name of a VM"},
	{"name of root's", func(r *attachRequest) { r.Port.VM = "web" }, "a VM web is on the network already"},
	{"MAC of root's", func(r *attachRequest) { r.Port.MAC = testPort().MAC }, "is on the network already"},
	{"MAC of the bridge", func(r *attachRequest) { r.Port.MAC = bridgeOf(specs()["nat"]) }, "is the network's own"},
	{"MAC of an interface", func(r *attachRequest) { r.Port.MAC = macOf("port") }, "is that of an interface of the host"},
	{"MAC of a machine", func(r *attachRequest) { r.Port.MAC[0] = 0 }, "might be another machine's"},
	{"MAC of many", func(r *attachRequest) { r.Port.MAC[0] |= 1 }, "not the address of one machine"},
	{"the host's address", func(r *attachRequest) { r.Port.IP = netip.MustParseAddr("10.70.0.1") }, "is the host's or the gateway's"},
	{"another range", func(r *attachRequest) { r.Port.IP = netip.MustParseAddr("192.0.2.2") }, "is not for a guest of"},
	{"broadcast", func(r *attachRequest) { r.Port.IP = netip.MustParseAddr("10.70.0.255") }, "is not for a guest of"},
	{"no id", func(r *attachRequest) { r.ID = "" }, "the port's id has to be"},
}

func macOf(link string) MAC {
	l, err := net.InterfaceByName(link)
	if err != nil {
		panic(err)
	}
	return MAC(l.HardwareAddr)
}

func bridgeOf(s Spec) MAC {
	id, err := instance(puppetHost.RootRuntime)
	if err != nil {
		panic(err)
	}
	return newNames(id, s).bridgeMAC()
}

// TestHostileRequests: a group's member lies about each thing that it can say.
func TestHostileRequests(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	h := openedLAN(t, labGroup)
	roots, err := Attach(context.Background(), h, specs()["nat"], testPort())
	if err != nil {
		t.Fatal(err)
	}
	defer roots.Close()
	guest := newPuppet(t, 1000, 1000, 7000)
	other := newPuppet(t, 1001, 7000)
	ask := func(edit func(*attachRequest)) *attachRequest {
		r := &attachRequest{ID: "mine", Net: specs()["nat"], Port: guestPort(1).Port}
		edit(r)
		return r
	}
	before := lan(t, h)
	for _, tt := range refusals {
		out := guest.asks(request{Protocol: protocolVersion, Attach: ask(tt.edit)})
		if out.Reply.Refused == nil || !strings.Contains(out.Reply.Refused.Text, tt.want) || out.Files != 0 {
			t.Errorf("%s: %+v with %d files, want a refusal with %q", tt.name, out.Reply, out.Files, tt.want)
		}
	}
	for what, r := range map[string]request{
		"only root can take the network down": {Protocol: protocolVersion, Down: true},
		"only root can hold a network up":     {Protocol: protocolVersion, Hold: &holdRequest{ID: "x", Net: specs()["nat"]}},
		"another version":                     {Protocol: 7, Attach: ask(func(*attachRequest) {})},
		"the port is another user's":          {Protocol: protocolVersion, Attach: ask(func(r *attachRequest) { r.ID = roots.request.ID })},
		"the first request has to":            {Protocol: protocolVersion, Detach: true},
	} {
		if out := other.asks(r); out.Reply.Refused == nil || !strings.Contains(out.Reply.Refused.Text, what) {
			t.Errorf("%+v, want a refusal with %q", out.Reply, what)
		}
	}
	resume := ask(func(r *attachRequest) { r.ID, r.Resume = roots.request.ID, true })
	if out := guest.asks(request{Protocol: protocolVersion, Attach: resume}); out.Reply.Refused == nil {
		t.Errorf("resumed root's port: %+v", out.Reply)
	}
	if after := lan(t, h); len(after.Members) != 1 || after.Members[0].VM != "web" || after.State != before.State {
		t.Errorf("%+v, before %+v", after, before)
	}
}

// TestFlood: one user's connections, silent, torn and half, keep nobody else
// from the network, and end.
func TestFlood(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	h := openedLAN(t, labGroup)
	flooder, guest := newPuppet(t, 1000, 7000), newPuppet(t, 1001, 7000)
	var silent []int
	for i := range maxConnections {
		out := flooder.must(order{Do: "dial"})
		silent = append(silent, out.At)
		if i%3 == 1 {
			flooder.must(order{Do: "send", At: out.At, Data: []byte(`{"protocol":1,"attach":{"id":"x","net":`)})
		}
		if i%3 == 2 {
			flooder.must(order{Do: "send", At: out.At, Data: []byte(strings.Repeat("[", 60000))})
		}
	}
	for range 500 { // beyond what a user may have: hung up on at once
		out := flooder.must(order{Do: "dial"})
		flooder.does(order{Do: "hang up", At: out.At})
	}
	started := time.Now()
	a := guest.must(guestPort(1))
	root, err := Attach(context.Background(), h, specs()["nat"], testPort())
	if err != nil {
		t.Fatal(err)
	}
	lan(t, h)
	t.Logf("two ports and a report beside the flood: %v", time.Since(started))
	if err := root.Close(); err != nil {
		t.Error(err)
	}
	guest.must(order{Do: "close", At: a.At})
	// The silent ones are hung up on, whatever they have not said.
	for _, at := range silent {
		if out := flooder.does(order{Do: "receive", At: at}); out.Err == "" {
			t.Errorf("connection %d was answered %+v", at, out.Reply)
		}
	}
}

// TestHungUp: who asks for a port and is gone before the answer has none, and
// leaves no TAP.
func TestHungUp(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	h := openedLAN(t, labGroup)
	guest := newPuppet(t, 1000, 7000)
	const times = 30
	for i := range times {
		text, err := json.Marshal(request{Protocol: protocolVersion,
			Attach: &attachRequest{ID: fmt.Sprint("hasty", i), Net: specs()["nat"], Port: guestPort(i).Port}})
		if err != nil {
			t.Fatal(err)
		}
		at := guest.must(order{Do: "dial"}).At
		guest.must(order{Do: "send", At: at, Data: text})
		guest.must(order{Do: "hang up", At: at})
	}
	// Each has had a port, or there would be nothing to take away.
	if !within(time.Minute, func() bool { return strings.Count(keeperLogs(h), "member leaves") == times }) {
		t.Errorf("not every port came and went:\n%s", keeperLogs(h))
	}
	awaitReport(t, h, func(r Report) bool { return len(r.Members) == 0 })
	if links := ip(t, "-br", "link"); strings.Contains(links, tapPrefix) {
		t.Errorf("a TAP is still there:\n%s", links)
	}
	if !strings.Contains(keeperLogs(h), "lost somebody before the answer") {
		t.Errorf("everybody has waited for the answer:\n%s", keeperLogs(h))
	}
}

// TestPortsAreBounded: a user gets so many ports and no more, and others theirs.
func TestPortsAreBounded(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	h := openedLAN(t, labGroup)
	greedy, guest := newPuppet(t, 1000, 7000), newPuppet(t, 1001, 7000)
	for i := range maxPorts {
		greedy.must(guestPort(i))
	}
	if out := greedy.does(guestPort(maxPorts)); !strings.Contains(out.Err, "user 1000 has 64 ports on the network, and more are for root") {
		t.Errorf("one more: %q", out.Err)
	}
	guest.must(guestPort(200))
	started := time.Now()
	greedy.kill() // all at once
	awaitReport(t, h, func(r Report) bool { return len(r.Members) == 1 })
	t.Logf("%d ports left within %v", maxPorts, time.Since(started))
}
