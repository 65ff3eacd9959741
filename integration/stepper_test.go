package integration

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/world"
)

// stepper stops vmrun at its steps.
type stepper struct {
	*host
	before  state
	dir     string   // by which the faulty vmrun is steered
	reached *os.File // its FIFO
	a, b    string   // profiles of two VMs on the network
	theirs  string   // a word of the commands that nobody kills; "": there are none
}

func newStepper(t *testing.T, mode steppedMode, backend string) *stepper {
	t.Helper()
	t.Setenv(binaryVariable, os.Getenv(faultyVariable))
	s := &stepper{host: newHostWith(t, backend), dir: mkdir(t, "/run/fault")}
	t.Setenv("VMRUN_FAULT", s.dir)
	fifo := filepath.Join(s.dir, "reached")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	if s.reached, err = os.OpenFile(fifo, os.O_RDWR, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.reached.Close() })
	addLink(t, s.host, "eth1", "192.0.2.2/24")
	world.Route(t, s.Namespace, "0.0.0.0/0", "192.0.2.1")
	addLink(t, s.host, "eth2")
	addLink(t, s.host, "eth3", "198.51.100.2/24")
	addBridge(t, s.host, "br0")
	if o := mode.beside; o != nil {
		feature.Needs(t, o.features...)
		o.serve(t, s.host)
		s.theirs = o.theirs
	}
	dir := t.TempDir()
	s.a = writeProfile(t, dir, "a", haltedGuest(t)+mode.network)
	s.b = writeProfile(t, dir, "b", haltedGuest(t)+mode.network)
	s.before = s.state(t)
	return s
}

// addBridge makes a bridge that is up, with a port so that it has a carrier. It
// learns nothing there: what a bridge has learned it forgets in time.
func addBridge(t *testing.T, h *host, name string) {
	t.Helper()
	bridge := addLink(t, h, name)
	port := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "port0", MasterIndex: bridge.Attrs().Index}, PeerName: "port0-peer"}
	if err := errors.Join(h.Links().LinkAdd(port), h.Links().LinkSetLearning(port, false)); err != nil {
		t.Fatal(err)
	}
	for _, link := range []string{"port0", "port0-peer", name} {
		world.SetUp(t, h.Namespace, link)
	}
	for _, link := range []string{"port0", "port0-peer", name} {
		world.Settle(t, h.Namespace, link)
	}
}

// phase is a part of two VMs' life on a network.
type phase struct {
	name    string
	prepare func(*testing.T) *scene
	begin   func(*testing.T, *scene)
	end     func(*testing.T, *scene) // waits for what nobody's death may prevent
}

// scene is what runs in a phase: the call that it is about, and the VMs that
// are left at its end.
type scene struct {
	call *machine
	left []*machine
}

func (s *stepper) phases() []phase {
	joins := func(t *testing.T, c *scene) {
		t.Helper()
		c.call.tells(t, joined)
		c.left = append(c.left, c.call)
	}
	stops := func(t *testing.T, c *scene) {
		t.Helper()
		if err := c.call.cmd.Process.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	leaves := func(t *testing.T, c *scene) {
		t.Helper()
		c.call.ends(t, 128+int(unix.SIGTERM))
	}
	return []phase{{
		"up",
		func(*testing.T) *scene { return new(scene) },
		func(t *testing.T, c *scene) { c.call = s.boot(t, s.a) },
		joins,
	}, {
		"join",
		func(t *testing.T) *scene { return &scene{left: []*machine{s.up(t, s.a)}} },
		func(t *testing.T, c *scene) { c.call = s.boot(t, s.b) },
		joins,
	}, {
		"leave",
		func(t *testing.T) *scene { return &scene{left: []*machine{s.up(t, s.a)}, call: s.up(t, s.b)} },
		stops, leaves,
	}, {
		"down",
		func(t *testing.T) *scene { return &scene{call: s.up(t, s.a)} },
		stops, leaves,
	}, {
		"gc",
		func(t *testing.T) *scene { s.up(t, s.a); s.killAll(t); return new(scene) },
		func(t *testing.T, c *scene) { c.call = s.start(t, s.command(t, "gc")) },
		func(t *testing.T, c *scene) { c.call.ends(t, 0) },
	}}
}

// joined is what a run tells once its guest is on the network.
const joined = `joined (network|bridge)`

func (s *stepper) boot(t *testing.T, profile string) *machine {
	t.Helper()
	return s.run(t, profile, "--grace", "0s")
}

func (s *stepper) up(t *testing.T, profile string) *machine {
	t.Helper()
	vm := s.boot(t, profile)
	vm.tells(t, joined)
	return vm
}

func (s *stepper) killAll(t *testing.T) {
	t.Helper()
	if s.theirs != "" {
		s.killStrangers(t, s.before, s.theirs)
		return
	}
	s.killStrangers(t, s.before)
	s.gone(t, s.before)
}

// terminate ends VMs in order.
func terminate(t *testing.T, vms ...*machine) {
	t.Helper()
	for _, vm := range vms {
		if err := vm.cmd.Process.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		vm.ends(t, 128+int(unix.SIGTERM))
	}
}
