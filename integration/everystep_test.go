package integration

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
	"github.com/vmrun/vmrun/integration/internal/world"
)

// steppedMode is a network whose every step is killed.
type steppedMode struct {
	name, network string
	run           func(*testing.T, func(*testing.T))
	backends      []string // that are told apart
	stride        int      // of the cases that are done where time is short,
	phases        []string // which are of these phases; none: of all
	beside        *others  // whom vmrun has to do with on the host; nil: nobody
}

// others are somebody else's daemons.
type others struct {
	features []string
	serve    func(*testing.T, *host)
	theirs   string // a word of the commands that run for them, and that no case kills
}

// libvirtd starts its network for the first VM, and has a dnsmasq for it.
var besideLibvirt = &others{libvirtFeatures, func(t *testing.T, h *host) { serveLibvirt(t) }, "/dnsmasq "}

// firewalld is told of the bridge, whatever carries vmrun's own rules.
var besideFirewalld = &others{[]string{"iptables", "daemons"}, func(t *testing.T, h *host) {
	world.InstallDaemons(t)
	useChains(t)
	serveFirewalld(t, "nftables")
}, ""}

// stepped are the networks of TestEveryStepKilled. Under another kernel each case
// takes seconds: fewer are done, and they begin first.
var stepped = []steppedMode{
	{"vlan", tenantUplink, sandbox.Run8021QNFT, []string{"nftables"}, 29, []string{"up"}, nil},
	{"vlan", tenantUplink, sandbox.Run8021Q, []string{"iptables"}, 29, []string{"up"}, nil},
	{"nat", natLAN, sandbox.Run, backends, 9, nil, nil},
	{"host-only", hostOnlyLab, sandbox.Run, backends, 9, nil, nil},
	{"bridge", "[[nics]]\nnetwork = \"phys\"\n[networks.phys]\nmode = \"bridge\"\nuplink = \"eth2\"\n", sandbox.Run, backends, 9, nil, nil},
	{"takeover", "[[nics]]\nnetwork = \"phys\"\n[networks.phys]\nmode = \"bridge\"\nuplink = \"eth3\"\ntakeover = true\n", sandbox.Run, backends, 9, nil, nil},
	{"joined", "[[nics]]\nnetwork = \"phys\"\n[networks.phys]\nmode = \"bridge\"\nbridge = \"br0\"\n", sandbox.Run, backends, 5, nil, nil},
	{"libvirt", "[[nics]]\nnetwork = \"lan\"\n[networks.lan]\nmode = \"bridge\"\nlibvirt = \"default\"\n", sandbox.Run, []string{"nftables"}, 6, nil, besideLibvirt},
	{"firewalld", natLAN, sandbox.Run, backends, 11, nil, besideFirewalld},
}

const tenantUplink = "[[nics]]\nnetwork = \"acme\"\n[networks.acme]\nmode = \"vlan\"\nuplink = \"eth2\"\nvlan = 10\nsubnet = \"10.72.0.0/24\"\n"

// TestEveryStepKilled kills a network's keeper, or all of vmrun at once, right
// before and right after each step that brings a network or a port up or takes
// it down, and gc at each step of its own. The host has to be as before each
// time. How many cases there are follows from what `vmrun plan` says.
func TestEveryStepKilled(t *testing.T) {
	buildFaulty(t)
	for _, mode := range stepped {
		for _, backend := range mode.backends {
			t.Run(mode.name+"/"+backend, func(t *testing.T) {
				mode.run(t, func(t *testing.T) {
					feature.Needs(t, "qemu", "tun", backend)
					s := newStepper(t, mode, backend)
					if feature.Long() {
						s.all(t, 1, nil)
					} else {
						s.all(t, mode.stride, mode.phases)
					}
				})
			})
		}
	}
}

// killing is one case: who is killed at which point of a phase.
type killing struct {
	phase
	point   string
	victims string // "keeper", "all" or "gc"
}

// all does every stride-th case of the phases, all of them where none is named,
// and holds that the cases are those that the plan leads to.
func (s *stepper) all(t *testing.T, stride int, phases []string) {
	t.Helper()
	planned, want := s.planned(t), 0
	var cases []killing
	for _, p := range s.phases() {
		if phases != nil && !slices.Contains(phases, p.name) {
			continue
		}
		want += planned[p.name]
		for _, point := range s.points(t, p) {
			if p.name == "gc" {
				cases = append(cases, killing{p, point, "gc"})
				continue
			}
			cases = append(cases, killing{p, point, "keeper"}, killing{p, point, "all"})
		}
	}
	if len(cases) != want {
		t.Errorf("%d cases were found, %d follow from the plan", len(cases), want)
	}
	done := 0
	for i := 0; i < len(cases) && !t.Failed(); i += stride {
		c := cases[i]
		s.do(t, c)
		s.report(t, fmt.Sprintf("%s: %s killed %.140s", c.name, c.victims, c.point))
		done++
	}
	s.report(t, fmt.Sprintf("%d cases of %d", done, len(cases)))
}

// report tells of a network's cases.
func (s *stepper) report(t *testing.T, line string) {
	t.Helper()
	sandbox.Report(t, "everystep.txt", strings.TrimPrefix(t.Name(), "TestEveryStepKilled/")+": "+line)
}

// planned is the number of cases of each phase that the plan leads to: two
// points for each step and each undo, where all links of a network go in one.
func (s *stepper) planned(t *testing.T) map[string]int {
	t.Helper()
	code, out := s.vmrun(t, "plan", "--json", s.a)
	if code != 0 {
		t.Fatalf("plan ends with %d: %s", code, out)
	}
	type steps []struct{ Do, Undo string }
	var plan struct {
		Networks []struct {
			Steps steps
			Ports []struct{ Steps steps }
		}
	}
	if err := json.Unmarshal([]byte(out[strings.Index(out, "{\n"):]), &plan); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	network, port := plan.Networks[0].Steps, plan.Networks[0].Ports[0].Steps
	undos := 1 // the links
	for _, step := range network {
		if step.Undo != "" && !strings.HasPrefix(step.Undo, "delete vm") {
			undos++
		}
	}
	const points, victims = 2, 2
	return map[string]int{
		"up":    points * victims * (len(network) + len(port)),
		"join":  points * victims * len(port),
		"leave": points * victims,
		"down":  points * victims * undos,
		"gc":    points * undos,
	}
}

// points lets a phase go by undisturbed and returns the points that it passed.
func (s *stepper) points(t *testing.T, p phase) []string {
	t.Helper()
	c := p.prepare(t)
	passed := filepath.Join(s.dir, "passed")
	write(t, passed, "")
	p.begin(t, c)
	p.end(t, c)
	text, err := os.ReadFile(passed)
	if err := errors.Join(err, os.Remove(passed)); err != nil {
		t.Fatal(err)
	}
	terminate(t, c.left...)
	s.restored(t, s.before)
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// do kills the victims of one case. Where the keeper alone dies, the VMs go on
// and end as if nothing had been; else gc makes good.
func (s *stepper) do(t *testing.T, k killing) {
	t.Helper()
	c := k.prepare(t)
	stop := filepath.Join(s.dir, "stop")
	write(t, stop, k.point)
	k.begin(t, c)
	pid := s.awaitStop(t, k)
	if err := os.Remove(stop); err != nil {
		t.Fatal(err)
	}
	switch k.victims {
	case "all":
		s.killAll(t)
		s.collectGarbage(t)
	default:
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if k.victims == "gc" {
			c.call.ends(t, -1)
			s.collectGarbage(t)
			break
		}
		k.end(t, c)
		terminate(t, c.left...)
		if said := complaint.FindString(c.call.messages.String()); said != "" {
			t.Errorf("the run said: %s", said)
		}
	}
	s.restored(t, s.before)
	if t.Failed() {
		t.Errorf("%s: %s killed %s", k.name, k.victims, k.point)
	}
}

// complaint is what a run must not say whose keeper died.
var complaint = regexp.MustCompile(`vmrun: (warning: )?(lost|leave|undo|launch|attach|teardown)\b.*`)

// awaitStop waits until the point is reached and returns the process that is there.
func (s *stepper) awaitStop(t *testing.T, k killing) (pid int) {
	t.Helper()
	if err := s.reached.SetReadDeadline(time.Now().Add(sandbox.Slowed(patience))); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(s.reached).ReadString('\n')
	if err == nil {
		pid, err = strconv.Atoi(strings.TrimSpace(line))
	}
	if err != nil {
		t.Fatalf("%s: wait for %q: %v", k.name, k.point, err)
	}
	return pid
}
