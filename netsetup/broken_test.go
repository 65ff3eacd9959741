package netsetup

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// TestBridgeDeleted: of a bridge that somebody deletes while the network is up the
// keeper tells once, nobody joins any more, and what is left goes as ever.
func TestBridgeDeleted(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	sh(t, "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6") // news of addresses would be a reason to look, too
	uplinks(t)
	h := testHost(t)
	hostState(t)
	ip(t, "link", "del", "br0")
	before := hostState(t)
	for _, name := range []string{"nat", "bridge-uplink", "bridge-join"} {
		for what, c := range map[string]deletion{"members": {members: 2}, "a holder": {}, "members and a killed keeper": {members: 2, killed: true}} {
			t.Run(name+" with "+what, func(t *testing.T) {
				if name == "bridge-join" {
					ip(t, "link", "add", "br0", "up", "type", "bridge")
				}
				deleteBridge(t, h, specs()[name], c)
				leftNothing(t, h, before, hostState)
			})
		}
	}
}

// TestBridgeReplaced: a link to which somebody has given the name of a network's
// bridge is not the network's, whatever it is, and stays as it is.
func TestBridgeReplaced(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	sh(t, "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
	h, before := uplinkedHost(t)
	for _, name := range []string{"nat", "bridge-uplink"} {
		for _, stranger := range []string{"link add NAME up type bridge", "tuntap add NAME mode tun"} {
			for what, killed := range map[string]bool{"": false, " and a killed keeper": true} {
				t.Run(name+" by "+stranger+what, func(t *testing.T) {
					deleteBridge(t, h, specs()[name], deletion{members: 2, killed: killed, stranger: stranger})
					leftNothing(t, h, before, hostState)
				})
			}
		}
	}
}

// TestBridgeRenamed: a bridge to which somebody has given another name is gone as if
// it was deleted, but the network's end takes it away under that name.
func TestBridgeRenamed(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	sh(t, "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
	h, before := uplinkedHost(t)
	for _, name := range []string{"nat", "bridge-uplink"} {
		for what, killed := range map[string]bool{"": false, " and a killed keeper": true} {
			t.Run(name+what, func(t *testing.T) {
				deleteBridge(t, h, specs()[name], deletion{members: 2, killed: killed, renamed: true})
				leftNothing(t, h, before, hostState)
			})
		}
	}
}

// rename gives a link another name; one that is up can keep its own before Linux 6.2.
func rename(t *testing.T, link, name string) {
	t.Helper()
	sh(t, fmt.Sprintf("until ip link set %s name %s; do ip link set %[1]s down; done", link, name))
}

// deletion says what there is when somebody deletes a bridge.
type deletion struct {
	members  int
	killed   bool   // the keeper, too
	renamed  bool   // it is, instead
	stranger string // what gives its name to another link; "": nobody does
}

// deleteBridge deletes the bridge of a network with a holder and members, and then
// lets those go.
func deleteBridge(t *testing.T, h Host, spec Spec, d deletion) {
	ctx := context.Background()
	said := len(keeperLogs(h))
	if err := StartHolder(ctx, h, spec, nil); err != nil {
		t.Fatal(err)
	}
	var ports []*Port
	for i := range d.members {
		p, err := Attach(ctx, h, spec, portOf(i))
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, p)
	}
	told := warnings(h)
	bridge := inState(t, h, spec, Up).Bridge
	heard := follows(t, h, spec)
	if d.renamed {
		rename(t, bridge, "other")
	} else {
		ip(t, "link", "del", bridge)
	}
	if d.stranger != "" {
		ip(t, strings.Fields(strings.ReplaceAll(d.stranger, "NAME", bridge))...)
	}
	if e := heard.next(Broke); !strings.Contains(e.Data.Text, bridge) {
		t.Errorf("heard %+v of bridge %s", e.Data, bridge)
	}
	inState(t, h, spec, Broken)
	if d.killed {
		kill(t, only(t))
		heard.next(KeeperDied)
		heard.next(Adopted)
		heard.next(Broke)
		inState(t, h, spec, Broken)
	}
	if list, err := List(ctx, h); err != nil || len(list) != 1 || list[0].State != Broken {
		t.Errorf("list %+v, %v; want it broken", list, err)
	}
	isRefused(t, h, spec, portOf(d.members), bridge)
	if err := Down(ctx, h, spec.Name, spec.Dir); (err != nil) != (d.members > 0) {
		t.Errorf("down: %v", err)
	}
	if d.members > 0 && d.stranger == "" {
		inState(t, h, spec, GoingDown)
		isRefused(t, h, spec, portOf(d.members), bridge)
	}
	if d.stranger != "" {
		defer ip(t, "link", "del", bridge)
		if put := ip(t, "-o", "-4", "addr", "show", "dev", bridge) + ip(t, "-o", "link", "show", "master", bridge); put != "" {
			t.Errorf("was put onto the stranger's link: %s", put)
		}
	}
	for _, p := range ports {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		heard.next(Left)
	}
	heard.next(WentDown)
	awaitAlone(t)
	want := 1
	if d.killed {
		want++ // the next keeper's
	}
	if n := warnings(h) - told; n != want {
		t.Errorf("told %d times:\n%s", n, keeperLogs(h))
	}
	if log := keeperLogs(h)[said:]; strings.Contains(log, "level=ERROR") {
		t.Errorf("takes it for an error:\n%s", log)
	}
}

// isRefused tries to join and to hold a network whose bridge is gone, and to plan
// that, before anything is done.
func isRefused(t *testing.T, h Host, spec Spec, port PortSpec, bridge string) {
	t.Helper()
	opened := strings.Count(keeperLogs(h), "open TAP")
	p, joins := Attach(context.Background(), h, spec, port)
	if joins == nil {
		defer p.Close()
	}
	facts, _, err := ReadFacts(h, spec)
	if err != nil {
		t.Fatal(err)
	}
	_, plans := NewJoinPlan(context.Background(), h, spec, []PortSpec{port}, facts)
	for what, err := range map[string]error{"join": joins, "plan": plans, "hold": StartHolder(context.Background(), h, spec, nil)} {
		var missing *MissingError
		if !errors.As(err, &missing) || missing.Feature != "bridge" || !strings.Contains(err.Error(), bridge) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if strings.Count(keeperLogs(h), "open TAP") != opened {
		t.Errorf("who was refused got a TAP:\n%s", keeperLogs(h))
	}
}

// inState inspects a network, which has to be in a state.
func inState(t *testing.T, h Host, spec Spec, want State) Report {
	t.Helper()
	r, err := Inspect(context.Background(), h, spec.Name, spec.Dir)
	if err != nil || r.State != want {
		t.Errorf("state %q, %v; want %s\n%s", r.State, err, want, keeperLogs(h))
	}
	return r
}

// warnings counts what the keepers' logs say of bridges that are gone.
func warnings(h Host) int {
	return strings.Count(keeperLogs(h), "level=WARN msg=\"somebody has deleted the bridge")
}

// TestBridgeMadeAgain: ports go into a bridge of the host's that somebody has
// deleted and made again, or given its name, without any other news.
func TestBridgeMadeAgain(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	sh(t, "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6") // news of addresses would be a reason to look, too
	uplinks(t)
	h, spec := testHost(t), specs()["bridge-join"]
	p, err := Attach(context.Background(), h, spec, testPort())
	if err != nil {
		t.Fatal(err)
	}
	heard := follows(t, h, spec)
	ip(t, "link", "add", "spare", "type", "bridge")
	for _, again := range []string{"link add br0 type bridge", "link set spare name br0"} {
		ip(t, "link", "del", "br0")
		heard.next(Broke)
		ip(t, strings.Fields(again)...)
		heard.next(Mended)
		if port := ip(t, "link", "show", "master", "br0"); !strings.Contains(port, p.Link()) {
			t.Errorf("after %s, %s is not in it: %s", again, p.Link(), port)
		}
		inState(t, h, spec, Up)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}
