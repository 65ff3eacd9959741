package integration

import (
	"testing"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
	"github.com/vmrun/vmrun/integration/internal/world"
)

// dockerRules are those of dockerd 20.10 with its default bridge, inserted before
// whatever is there as dockerd does.
const dockerRules = `*filter
:FORWARD DROP
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-I FORWARD 1 -i docker0 -o docker0 -j ACCEPT
-I FORWARD 1 -i docker0 ! -o docker0 -j ACCEPT
-I FORWARD 1 -o docker0 -j DOCKER
-I FORWARD 1 -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-I FORWARD 1 -j DOCKER-ISOLATION-STAGE-1
-I FORWARD 1 -j DOCKER-USER
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
COMMIT
`

// noDockerRules takes them away again.
const noDockerRules = `*filter
:FORWARD ACCEPT
-D FORWARD -i docker0 -o docker0 -j ACCEPT
-D FORWARD -i docker0 ! -o docker0 -j ACCEPT
-D FORWARD -o docker0 -j DOCKER
-D FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-D FORWARD -j DOCKER-ISOLATION-STAGE-1
-D FORWARD -j DOCKER-USER
-F DOCKER-ISOLATION-STAGE-1
-F DOCKER-ISOLATION-STAGE-2
-F DOCKER-USER
-X DOCKER
-X DOCKER-ISOLATION-STAGE-1
-X DOCKER-ISOLATION-STAGE-2
-X DOCKER-USER
COMMIT
*nat
-D PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-D OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-D POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-F DOCKER
-X DOCKER
COMMIT
`

// startDocker makes the host what dockerd makes of it, and shows by a bystander
// that forwarding is forbidden from then on.
func startDocker(t *testing.T, bystander *sandbox.Namespace) {
	t.Helper()
	writeSetting(t, "net/ipv4/ip_forward", "1")
	if err := reaches(t, bystander, world.Gateway); err != nil {
		t.Errorf("the host does not forward, so there is nothing to forbid: %v", err)
	}
	restoreRules(t, dockerRules)
	if err := reaches(t, bystander, world.Gateway); err == nil {
		t.Error("Docker's rules forbid nothing")
	}
}

// Docker drops what it does not know, whether it was there first or comes later.
// Its rules stay as they are.
func TestDocker(t *testing.T) {
	beside(t)
	for _, when := range []string{"before", "after"} {
		t.Run("rules "+when, func(t *testing.T) {
			besideOthers(t, func(t *testing.T, h *host) { besideDockerRules(t, h, when == "before") })
		})
	}
	if feature.Long() {
		t.Run("dockerd", func(t *testing.T) { besideOthers(t, besideDockerd, "docker") })
	}
}

// besideDockerRules has Docker's rules there before a VM, or come while it runs.
func besideDockerRules(t *testing.T, h *host, first bool) {
	lan, neighbour := newOutside(t, h, "10.70.0.0/24")
	bystander := newBystander(t, h, lan)
	restoreRules(t, dockerRules) // chains of the kernel's that stay
	restoreRules(t, noDockerRules)
	useChains(t)
	if first {
		startDocker(t, bystander)
	}
	before := h.state(t)
	vm := h.run(t, writeProfile(t, t.TempDir(), "web", natLAN+micro(t, reachScript)))
	lease := vm.expect(t, `eth0 \S+ (10\.70\.0\.\d+)/24`)
	vm.asks(t, world.Gateway, true)
	if !first {
		startDocker(t, bystander)
	}
	vm.asksUntil(t, world.Gateway)
	vm.asksUntil(t, world.Domain)
	h.carried(t)
	if err := reaches(t, bystander, world.Gateway); err == nil {
		t.Error("beside vmrun, Docker's rules forbid nothing")
	}
	if err := reaches(t, neighbour, lease[1]); err == nil {
		t.Error("a machine on the uplink reaches the guest")
	}
	vm.say(t, "")
	vm.ends(t, 0)
	if !first {
		restoreRules(t, noDockerRules)
		writeSetting(t, "net/ipv4/ip_forward", "0")
	}
	h.restored(t, before)
}

// besideDockerd is the same with Docker itself: it starts while guests run, and is
// started anew, and is there before others.
func besideDockerd(t *testing.T, h *host) {
	world.InstallDocker(t)
	lan, neighbour := newOutside(t, h, "10.70.0.0/24")
	bystander := newBystander(t, h, lan)
	dir := t.TempDir()
	var vm, closed *machine
	var lease string
	boot := func() {
		t.Helper()
		vm = h.run(t, writeProfile(t, dir, "web", natLAN+micro(t, reachScript)))
		lease = vm.expect(t, `eth0 \S+ (10\.70\.0\.\d+)/24`)[1]
		closed = h.run(t, writeProfile(t, dir, "closed", hostOnlyLab+micro(t, reachScript)))
		closed.expect(t, `eth0 \S+ 10\.71\.0\.\d+/24`)
	}
	work := func(when string) {
		t.Helper()
		t.Logf("%s: the guest reaches the outside after %v", when, vm.asksUntil(t, world.Domain))
		h.carried(t)
		closed.asks(t, world.Gateway, false)
		if err := reaches(t, neighbour, lease); err == nil {
			t.Errorf("%s: a machine on the uplink reaches the guest", when)
		}
		if err := reaches(t, bystander, world.Gateway); err == nil {
			t.Errorf("%s: Docker forbids nothing", when)
		}
	}
	end := func() {
		t.Helper()
		for _, m := range []*machine{vm, closed} {
			m.say(t, "")
			m.ends(t, 0)
		}
	}
	boot()
	vm.asks(t, world.Domain, true)
	d := world.ServeDocker(t)
	if on := world.Tool(t, "cat", "/proc/sys/net/ipv4/ip_forward"); on != "1\n" {
		t.Errorf("dockerd leaves ip_forward at %q, so that its DROP has nothing to forbid", on)
	}
	work("after dockerd has come")
	d.Stop(t)
	d.Start(t)
	work("after dockerd's restart")
	end()
	useChains(t)
	before := h.state(t)
	boot()
	work("beside dockerd")
	end()
	h.restored(t, before)
}
