package integration

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/hoststate"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
	"github.com/vmrun/vmrun/integration/internal/world"
	"github.com/vmrun/vmrun/netsetup"
)

// adoptionLimit is how long a network may be without keeper, and forwarded
// traffic without a way.
const adoptionLimit = time.Second

// network is a network of the tests' own members. Guests reach all of the host.
func network(mode netsetup.Mode, backend string) netsetup.Spec {
	return netsetup.Spec{Name: "lan", Mode: mode, Subnet: netip.MustParsePrefix("10.70.0.0/24"),
		DHCP: true, DNS: true, HostAccess: netsetup.HostAll, Firewall: backend}
}

// A keeper that is killed is replaced within a second. Meanwhile nothing is lost
// between guests and with the host, forwarding is interrupted for a second at
// most, and each guest's address stays its own; also where the journal is lost.
func TestTrafficOutlivesKeeper(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			sandbox.Run(t, func(t *testing.T) {
				feature.Needs(t, "tun", backend, "udhcpc")
				h := newHostWith(t, backend)
				lan, _ := newOutside(t, h, "10.70.0.0/24")
				before := h.state(t)
				t.Run("guests", func(t *testing.T) { trafficOutlivesKeeper(t, h, lan, backend) })
				h.restored(t, before)
			})
		})
	}
}

func trafficOutlivesKeeper(t *testing.T, h *host, lan *world.LAN, backend string) {
	t.Helper()
	spec := network(netsetup.NAT, backend)
	a, b := newTapGuest(t, h, spec, "a", 1), newTapGuest(t, h, spec, "b", 2)
	bridged := []*stream{
		newStream(t, "guest to guest", a.Namespace, b.Namespace, b.port.IP().String()),
		newStream(t, "guest to host", a.Namespace, h.Namespace, "10.70.0.1"),
	}
	forwarded := newStream(t, "guest to outside", a.Namespace, lan.Gateway, world.Gateway)
	all := append(bridged, forwarded)
	for i := range feature.Amount(3, 30) {
		for _, s := range all {
			s.flows(t)
		}
		if i%2 == 1 { // and nothing tells the next one what there is
			if err := os.Truncate(filepath.Join(h.dir, "run/nets", spec.ID(), "journal"), 0); err != nil {
				t.Fatal(err)
			}
		}
		kill(t, unix.SIGKILL, keeperWord)
		h.membersReturn(t, spec, 2)
		c := h.attach(t, spec, "c", 3)
		if c.Members() != 3 {
			t.Errorf("%d members with the third", c.Members())
		}
		for _, g := range []*tapGuest{a, b} {
			if lease := g.askDHCP(t); lease != g.port.IP().String() {
				t.Errorf("%s was given for %s", lease, g.port.IP())
			}
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	forwarded.flows(t)      // what is lost at the end leaves no gap between answers
	var stood time.Duration // the machine, while other tests ran: no keeper carries these
	for _, s := range bridged {
		if lost := s.end(t); lost > 0 {
			t.Errorf("%s: %d lost", s.name, lost)
		}
		stood = max(stood, s.gap)
	}
	forwarded.end(t)
	if forwarded.gap-stood > sandbox.Slowed(adoptionLimit) {
		t.Errorf("%s: interrupted for %v, where the machine stood still for %v at most", forwarded.name, forwarded.gap, stood)
	}
	leave(t, a, b)
}

// membersReturn waits until the members of a network whose keeper was just killed
// have found the next one by themselves.
func (h *host) membersReturn(t *testing.T, spec netsetup.Spec, members int) {
	t.Helper()
	killed := time.Now()
	for {
		r, err := netsetup.Inspect(t.Context(), h.netHost(), spec.Name, spec.Dir)
		took := time.Since(killed)
		back := 0
		for _, m := range r.Members {
			if m.PID != 0 {
				back++
			}
		}
		switch {
		case err == nil && back == members:
			t.Logf("%d members are back after %v", back, took)
			if feature.Long() && took > sandbox.Slowed(adoptionLimit) {
				t.Errorf("%d members are back after %v, want %v", back, took, adoptionLimit)
			}
			return
		case took > sandbox.Slowed(patience):
			t.Fatalf("of %d members %d are back after %v: %v", members, back, took, err)
		}
	}
}

// askDHCP asks for an address as a guest does and returns what it was given.
func (g *tapGuest) askDHCP(t *testing.T) (lease string) {
	t.Helper()
	var out []byte
	err := g.Do(func() (err error) {
		out, err = exec.Command("udhcpc", "-i", "eth0", "-n", "-q", "-f", "-s", "/bin/true").CombinedOutput()
		return err
	})
	_, rest, ok := strings.Cut(string(out), "lease of ")
	if err != nil || !ok {
		t.Fatalf("ask for an address: %v:\n%s", err, out)
	}
	return strings.TrimRight(strings.Fields(rest)[0], ",")
}

// On a host that forwards everything, a guest of a host-only network is never
// reached from outside and reaches nothing there, not for a moment: not while
// its keeper is dead, nor while another takes over. A guest of a nat network is
// not reached either, and reaches the outside. That the prober has a way is
// shown by a machine behind the same host that nobody protects.
func TestIsolationOutlivesKeeper(t *testing.T) {
	for _, backend := range backends {
		for _, mode := range []netsetup.Mode{netsetup.HostOnly, netsetup.NAT} {
			t.Run(backend+"/"+string(mode), func(t *testing.T) {
				sandbox.Run(t, func(t *testing.T) {
					feature.Needs(t, "tun", backend)
					h := newHostWith(t, backend)
					var b beyond
					b.lan, b.prober = newOutside(t, h, "10.70.0.0/24")
					b.open = newOpenMachine(t, h, b.lan, b.prober)
					setSysctl(t, "net/ipv4/ip_forward", "1")
					before := h.state(t)
					t.Run("guests", func(t *testing.T) {
						b.isolationOutlivesKeeper(t, h, network(mode, backend))
					})
					h.restored(t, before)
				})
			})
		}
	}
}

// beyond are machines around a host.
type beyond struct {
	lan    *world.LAN         // on its uplink
	prober *sandbox.Namespace // there, with routes to all that is behind the host
	open   *sandbox.Namespace // behind the host, and none of vmrun's affairs
}

func (b beyond) isolationOutlivesKeeper(t *testing.T, h *host, spec netsetup.Spec) {
	t.Helper()
	guest := newTapGuest(t, h, spec, "a", 1)
	in := newStream(t, "outside to guest", b.prober, guest.Namespace, guest.port.IP().String())
	out := newStream(t, "guest to outside", guest.Namespace, b.lan.Gateway, world.Gateway)
	control := newStream(t, "outside to open machine", b.prober, b.open, openAddress)
	for range feature.Amount(5, 50) {
		control.flows(t)
		release := h.keepDead(t, "lan")
		control.flows(t)
		release()
		if err := h.attach(t, spec, "b", 2).Close(); err != nil { // by the new keeper
			t.Error(err)
		}
	}
	if spec.Mode == netsetup.NAT {
		out.flows(t)
	}
	for _, s := range []*stream{in, out, control} {
		s.close()
		t.Log(s.report())
	}
	if n := in.arrivals(); n > 0 {
		t.Errorf("the guest was reached from outside, %d times", n)
	}
	if n := out.arrivals(); n > 0 && spec.Mode == netsetup.HostOnly {
		t.Errorf("the guest reached the outside, %d times", n)
	}
	leave(t, guest)
}

const openAddress = "10.99.0.2"

// newOpenMachine puts a machine behind the host that has nothing to do with
// vmrun, which the LAN's machines route to.
func newOpenMachine(t *testing.T, h *host, lan *world.LAN, neighbour *sandbox.Namespace) *sandbox.Namespace {
	t.Helper()
	open := sandbox.NewNamespace(t)
	world.Wire(t, h.Namespace, "open0", open, "eth0")
	world.SetUp(t, h.Namespace, "open0", "10.99.0.1/24")
	world.SetUp(t, open, "eth0", openAddress+"/24")
	world.Settle(t, h.Namespace, "open0")
	world.Settle(t, open, "eth0")
	world.Route(t, open, "0.0.0.0/0", "10.99.0.1")
	for _, ns := range []*sandbox.Namespace{neighbour, lan.Gateway} {
		world.Route(t, ns, "10.99.0.0/24", world.Host)
	}
	return open
}

func setSysctl(t *testing.T, key, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

// A killed supervisor's port goes at once, and its QEMU; the network's other
// port stays.
func TestKilledSupervisorsPort(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, "qemu", "tun")
		h := newHost(t)
		before := h.state(t)
		dir, guest := t.TempDir(), haltedGuest(t)
		a := h.run(t, writeProfile(t, dir, "a", guest+natLAN), "--grace", "0s")
		a.tells(t, joined)
		one := h.state(t)
		b := h.run(t, writeProfile(t, dir, "b", guest+natLAN), "--grace", "0s")
		b.tells(t, joined)
		strangers := kill(t, unix.SIGKILL, dir+"/b.toml")
		b.ends(t, -1)
		awaitEnd(t, strangers...)
		h.restoredButFiles(t, one)
		terminate(t, a)
		h.collectGarbage(t) // b's state.json
		h.restored(t, before)
	})
}

// When all was killed at once, the next command that has to do with networks
// restores the host, also when those that were killed are not yet gone.
func TestNextCommandRestores(t *testing.T) {
	beside(t)
	for _, next := range []struct {
		name    string
		network string // of the next run; "": no run
		calls   [][]string
	}{
		{"gc", "", nil},
		{"run on the same network", natLAN, nil},
		{"run on another network", hostOnlyLab, nil},
		{"run on another network of that name", strings.Replace(natLAN, "nat", "host-only", 1), nil},
		{"net up and down", "", [][]string{{"net", "up", "net.toml"}, {"net", "down", "held"}}},
	} {
		t.Run(next.name, func(t *testing.T) {
			sandbox.Run(t, func(t *testing.T) {
				feature.Needs(t, "qemu", "tun")
				h := newHost(t)
				newOutside(t, h, "10.70.0.0/24")
				before := h.state(t)
				dir, guest := t.TempDir(), haltedGuest(t)
				vm := h.run(t, writeProfile(t, dir, "a", guest+natLAN), "--grace", "0s")
				vm.tells(t, joined)
				h.killAtOnce(t, before)
				if next.network != "" {
					again := h.run(t, writeProfile(t, dir, "b", guest+next.network), "--grace", "0s")
					again.tells(t, joined)
					terminate(t, again)
					h.restoredButFiles(t, before)
				}
				write(t, filepath.Join(dir, "net.toml"), "[networks.held]\nmode = \"nat\"\n")
				for _, args := range next.calls {
					cmd := h.command(t, args...)
					cmd.Dir = dir
					h.start(t, cmd).ends(t, 0)
				}
				if next.calls != nil {
					h.restoredButFiles(t, before)
				}
				h.collectGarbage(t)
				vm.exit(t)
				h.restored(t, before)
			})
		})
	}
}

// Commands that are about something else restore the host as well.
func TestAnyCommandRestores(t *testing.T) {
	beside(t)
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			sandbox.Run(t, func(t *testing.T) {
				feature.Needs(t, "qemu", "tun", backend)
				h := newHostWith(t, backend)
				newOutside(t, h, "10.70.0.0/24")
				before := h.state(t)
				dir := t.TempDir()
				profile := writeProfile(t, dir, "a", haltedGuest(t)+natLAN)
				for _, next := range []struct {
					args []string
					code int
				}{
					{[]string{"net", "ls"}, 0}, {[]string{"net", "inspect", "lan"}, 1}, {[]string{"net", "leases", "lan"}, 1},
					{[]string{"net", "down", "lan"}, 0}, {[]string{"ps"}, 0}, {[]string{"inspect", "a"}, 0},
				} {
					vm := h.run(t, profile, "--grace", "0s")
					vm.tells(t, joined)
					h.killAtOnce(t, before)
					h.gone(t, before)
					vm.exit(t)
					cmd := h.command(t, next.args...)
					cmd.Dir = dir
					h.start(t, cmd).ends(t, next.code)
					h.restoredButFiles(t, before)
				}
				h.collectGarbage(t)
				h.restored(t, before)
			})
		})
	}
}

// killAtOnce kills every process that came since and does not wait for its end.
func (h *host) killAtOnce(t *testing.T, before state) {
	t.Helper()
	strangers, err := hoststate.Others(before.processes)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range strangers {
		if err := unix.Kill(p.PID, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			t.Fatalf("kill %d (%s): %v", p.PID, p.Command, err)
		}
	}
}
