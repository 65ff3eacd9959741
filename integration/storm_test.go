package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/hoststate"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
)

// openLAN is a nat network whose range vmrun chooses.
const openLAN = "[[nics]]\nnetwork = %[1]q\n[networks.%[1]s]\nmode = \"nat\"\n"

// Crowds of VMs come to a cold network at once and leave by order, by SIGKILL
// and with their keeper, while others come and gc runs. Nobody who was not
// killed sees an error, and nothing is left.
func TestStorm(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			sandbox.Run(t, func(t *testing.T) {
				feature.Needs(t, "qemu", "tun", backend)
				h := newHostWith(t, backend)
				newOutside(t, h, "10.70.0.0/24")
				s := &storm{host: h, dir: t.TempDir(), guest: haltedGuest(t), before: h.state(t)}
				for round := range feature.Amount(2, 10) {
					s.round(t, round, feature.Amount(12, 50))
					if t.Failed() {
						t.Fatalf("in round %d", round)
					}
				}
			})
		})
	}
}

// storm is many VMs on one network.
type storm struct {
	*host
	dir    string // of the profiles
	guest  string
	before state
}

func (s *storm) start(t *testing.T, name string) *machine {
	t.Helper()
	return s.run(t, writeProfile(t, s.dir, name, s.guest+natLAN), "--grace", "0s")
}

// round is one storm. In every other one the keeper is killed, too: while the
// crowd comes, and while it goes.
func (s *storm) round(t *testing.T, round, size int) {
	t.Helper()
	keeperDies := round%2 == 1
	var vms []*machine
	for i := range size {
		vms = append(vms, s.start(t, fmt.Sprintf("vm%d", i)))
	}
	collecting := s.collect(t, 3)
	coming := vms
	if keeperDies {
		vms[0].tells(t, joined)
		awaitEnd(t, kill(t, unix.SIGKILL, keeperWord)...)
		vms = append(vms, s.start(t, "another")) // which joins once another keeper answers
		coming = vms[1:]
	}
	for _, vm := range coming {
		vm.tells(t, joined)
	}
	end(t, collecting)
	s.unique(t, len(vms))

	// All at once: a quarter is asked to stop, a quarter killed, another crowd
	// comes, gc runs.
	var stays, asked, killed []*machine
	for i, vm := range vms {
		switch i % 4 {
		case 0:
			asked = append(asked, vm)
		case 1:
			signal(t, vm, unix.SIGKILL)
			killed = append(killed, vm)
		default:
			stays = append(stays, vm)
		}
	}
	calls := s.stop(t, asked)
	if keeperDies {
		kill(t, unix.SIGKILL, keeperWord)
	}
	calls = append(calls, s.collect(t, 3)...)
	for i := range size / 4 {
		stays = append(stays, s.start(t, fmt.Sprintf("late%d", i)))
	}
	for _, vm := range stays[len(stays)-size/4:] {
		vm.tells(t, joined)
	}
	for _, vm := range killed {
		vm.ends(t, -1)
	}
	s.quiet(t, asked, calls, keeperDies)
	end(t, s.collect(t, 1))
	s.unique(t, len(stays))
	calls = s.stop(t, stays)
	s.quiet(t, stays, calls, keeperDies)
	end(t, s.collect(t, 1))
	s.restored(t, s.before)
}

// stop asks VMs to end, every other one by the command, whose calls it returns.
// They are to be passed to quiet.
func (s *storm) stop(t *testing.T, vms []*machine) (calls []*machine) {
	t.Helper()
	for i, vm := range vms {
		if i%2 == 0 {
			signal(t, vm, unix.SIGTERM)
			continue
		}
		calls = append(calls, s.host.start(t, s.command(t, "stop", "--grace", "0s", vm.name())))
	}
	return calls
}

// name is that of the VM whose run this is.
func (m *machine) name() string {
	return strings.TrimSuffix(filepath.Base(m.cmd.Args[len(m.cmd.Args)-1]), ".toml")
}

// signal sends a signal to a call of vmrun.
func signal(t *testing.T, vm *machine, s unix.Signal) {
	t.Helper()
	if err := vm.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// quiet waits for the end of VMs that stop has asked, and of calls, and fails the
// test if one has complained, but of the keeper's death.
func (s *storm) quiet(t *testing.T, vms, calls []*machine, keeperDies bool) {
	t.Helper()
	for i, vm := range vms {
		code := 128 + int(unix.SIGTERM)
		if i%2 != 0 { // `vmrun stop` had QEMU quit
			code = 0
		}
		vm.ends(t, code)
		vm.said(t, keeperDies)
	}
	end(t, calls)
}

// endsQuietly waits for the end of a run that was asked to end, and fails the
// test if it has complained.
func (m *machine) endsQuietly(t *testing.T) {
	t.Helper()
	m.ends(t, 128+int(unix.SIGTERM))
	m.said(t, false)
}

// collect starts several gc at once, to be passed to end.
func (s *storm) collect(t *testing.T, n int) (calls []*machine) {
	t.Helper()
	for range n {
		calls = append(calls, s.host.start(t, s.command(t, "gc")))
	}
	return calls
}

// end waits for calls that have to succeed, and may not complain.
func end(t *testing.T, calls []*machine) {
	t.Helper()
	for _, call := range calls {
		call.ends(t, 0)
		call.said(t, false)
	}
}

// news is what a call may tell that is not the matter of a complaint.
var news = regexp.MustCompile(`^vmrun: (\S+: joined network \S+ \(\d+ members?\), address \S+$` +
	`|launching |warning: QEMU runs as root: |ended by )`)

// said fails the test if a call has told anything but news, and of the keeper's
// death where it dies.
func (m *machine) said(t *testing.T, keeperDies bool) {
	t.Helper()
	for line := range strings.Lines(m.messages.String()) {
		line = strings.TrimSpace(line)
		if !news.MatchString(line) && !(keeperDies && strings.Contains(line, "keeper died, another one takes over")) {
			t.Errorf("%v said: %s", m.cmd.Args[1:], line)
		}
	}
}

// unique fails the test unless so many VMs have MACs, addresses and TAPs of
// their own, and all of them one keeper.
func (h *host) unique(t *testing.T, vms int) {
	t.Helper()
	states, err := filepath.Glob(filepath.Join(h.dir, "run/vms/*/state.json"))
	if err != nil || len(states) != vms {
		t.Errorf("%d VMs have recorded their state, %v; want %d", len(states), err, vms)
	}
	seen := map[string]string{}
	for _, file := range states {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var state struct {
			Name string
			NICs []struct{ MAC, IP, Link string }
		}
		if err := json.Unmarshal(text, &state); err != nil || len(state.NICs) != 1 {
			t.Fatalf("%s: %v: %s", file, err, text)
		}
		nic := state.NICs[0]
		for _, id := range []string{nic.MAC, nic.IP, nic.Link} {
			if other, taken := seen[id]; taken || id == "" {
				t.Errorf("%s and %s both have %q", other, state.Name, id)
			}
			seen[id] = state.Name
		}
	}
	if n := h.keepers(t); n != 1 {
		t.Errorf("%d keepers for one network", n)
	}
}

// keepers counts the keepers of the host's instance.
func (h *host) keepers(t *testing.T) (n int) {
	t.Helper()
	running, err := hoststate.Running()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range running {
		session, err := unix.Getsid(p.PID)
		own := err == nil && session == p.PID // else a child of a keeper's, before its exec
		if own && strings.Contains(p.Command, keeperWord) && strings.Contains(p.Command, h.dir+"/") {
			n++
		}
	}
	return n
}

// Many networks come up at once, each with a range of its own.
func TestManyNetworks(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			sandbox.Run(t, func(t *testing.T) {
				feature.Needs(t, "qemu", "tun", backend)
				h := newHostWith(t, backend)
				newOutside(t, h, "10.70.0.0/24")
				dir, guest, before := t.TempDir(), haltedGuest(t), h.state(t)
				for range feature.Amount(1, 5) {
					var vms []*machine
					for i := range feature.Amount(8, 30) {
						name := fmt.Sprintf("net%d", i)
						vms = append(vms, h.run(t, writeProfile(t, dir, name, guest+fmt.Sprintf(openLAN, name)), "--grace", "0s"))
					}
					ranges := map[string]bool{}
					for _, vm := range vms {
						ranges[vm.tells(t, `joined network net\d+ \(1 member\), address (\d+\.\d+\.\d+)`)[1]] = true
					}
					if len(ranges) != len(vms) || h.keepers(t) != len(vms) {
						t.Errorf("%d ranges and %d keepers for %d networks", len(ranges), h.keepers(t), len(vms))
					}
					for _, vm := range vms {
						signal(t, vm, unix.SIGTERM)
					}
					for _, vm := range vms {
						vm.endsQuietly(t)
					}
					h.restored(t, before)
				}
			})
		})
	}
}

// Two instances, by their runtime folders, run the same profiles at once and
// don't meet; the end of one, in order or by SIGKILL, leaves the other alone.
func TestTwoInstances(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			sandbox.Run(t, func(t *testing.T) {
				feature.Needs(t, "qemu", "tun", backend)
				one := newHostWith(t, backend)
				newOutside(t, one, "10.70.0.0/24")
				two := (&host{Namespace: one.Namespace, firewall: backend, dir: mkdir(t, "/run/other")}).logged(t)
				dir, guest, before := t.TempDir(), haltedGuest(t), one.state(t)
				vms := map[*host][]*machine{}
				for i := range feature.Amount(5, 20) {
					profile := writeProfile(t, dir, fmt.Sprintf("vm%d", i), guest+fmt.Sprintf(openLAN, "lan"))
					for _, h := range []*host{one, two} {
						vms[h] = append(vms[h], h.run(t, profile, "--grace", "0s"))
					}
				}
				for _, h := range []*host{one, two} {
					for _, vm := range vms[h] {
						vm.tells(t, joined)
					}
				}
				for _, h := range []*host{one, two} {
					h.unique(t, len(vms[h]))
				}
				kill(t, unix.SIGSTOP, one.dir+"/run") // it might just end with its last member
				for _, vm := range vms[one] {
					signal(t, vm, unix.SIGKILL)
				}
				keeper := kill(t, unix.SIGKILL, one.dir+"/run")
				end(t, []*machine{one.start(t, one.command(t, "gc")), two.start(t, two.command(t, "gc"))})
				for _, vm := range vms[one] {
					vm.ends(t, -1)
				}
				awaitEnd(t, keeper...)
				two.unique(t, len(vms[two]))
				if n := one.keepers(t); n != 0 {
					t.Errorf("%d keepers of the killed instance", n)
				}
				if text, err := os.ReadFile("/proc/sys/net/ipv4/conf/eth1/forwarding"); err != nil || string(text) != "1\n" {
					t.Errorf("eth1 forwards: %q, %v; the other instance needs it", text, err)
				}
				for _, vm := range vms[two] {
					signal(t, vm, unix.SIGTERM)
				}
				for _, vm := range vms[two] {
					vm.endsQuietly(t)
				}
				one.restored(t, before)
			})
		})
	}
}
