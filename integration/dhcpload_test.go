package integration

import (
	"bufio"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/integration/internal/dhcpload"
	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
	"github.com/vmrun/vmrun/integration/internal/world"
	"github.com/vmrun/vmrun/netsetup"
)

// wideNetwork has room for as many machines as can ask in a test.
func wideNetwork(mode netsetup.Mode) netsetup.Spec {
	spec := network(mode, "")
	spec.Subnet = netip.MustParsePrefix("10.64.0.0/16")
	spec.PoolFirst, spec.PoolLast = netip.MustParseAddr("10.64.1.0"), netip.MustParseAddr("10.64.254.255")
	return spec
}

const relayAddress = "10.64.0.2"

// A thousand machines a second ask for addresses: none is left without an
// answer, none gets another one's or one that is not of the pool, and all have
// the same after the keeper's death and after the network's end.
func TestDHCPLoad(t *testing.T) {
	for _, mode := range []netsetup.Mode{netsetup.NAT, netsetup.HostOnly} {
		t.Run(string(mode), func(t *testing.T) {
			sandbox.RunAlone(t, func(t *testing.T) {
				feature.Needs(t, "tun", "iptables", "perfdhcp")
				h := newHost(t)
				before := h.state(t)
				t.Run("network", func(t *testing.T) { h.serveMany(t, wideNetwork(mode)) })
				h.restored(t, before)
			})
		})
	}
}

func (h *host) serveMany(t *testing.T, spec netsetup.Spec) {
	t.Helper()
	port := h.attach(t, spec, "a", 1)
	relay := sandbox.NewNamespace(t)
	world.Wire(t, relay, "eth0", h.Namespace, "load0")
	world.SetUp(t, h.Namespace, "load0")
	world.SetUp(t, relay, "eth0", relayAddress+"/16")
	world.Settle(t, relay, "eth0")
	plugIn(t, h, port.Bridge())

	const most, fewest, tries = 0.1, 9000, 3 // dropped, in percent; leases
	dropped, said := load(t, relay)
	for try := 1; dropped > most && try < tries; try++ {
		t.Logf("%v %% dropped: the machine stood still, or the server is slow", dropped)
		dropped, said = load(t, relay)
	}
	leases := h.leases(t, spec)
	if dropped > most || len(leases) < fewest {
		t.Errorf("%v %% dropped, %d leases; want %v and %d at least:\n%s", dropped, len(leases), most, fewest, said)
	}
	t.Logf("%v %% dropped, %d leases", dropped, len(leases))

	h.sameLeases(t, relay, leases)
	kill(t, unix.SIGKILL, keeperWord)
	again := h.attach(t, spec, "b", 2) // by the next keeper
	h.sameLeases(t, relay, leases)
	for _, p := range []*netsetup.Port{again, port} {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	port = h.attach(t, spec, "a", 1)
	plugIn(t, h, port.Bridge())
	h.sameLeases(t, relay, leases)
	if err := port.Close(); err != nil {
		t.Error(err)
	}
}

// load has 1000 new clients a second ask for addresses, for 10 s. It returns what part
// of the exchanges had no answer in time, in percent, and fails the test where an
// address was given twice.
func load(t *testing.T, relay *sandbox.Namespace) (dropped float64, said string) {
	t.Helper()
	said, err := output(relay, "perfdhcp", "-4", "-l", "eth0", "-r", "1000", "-R", "1000000", "-p", "10",
		"-W", "1000000", "10.64.0.1") // -W: microseconds for the last answers
	figures := regexp.MustCompile(`(drops ratio|non unique addresses): (\S+)`).FindAllStringSubmatch(said, -1)
	if len(figures) < 4 {
		t.Fatalf("perfdhcp: %v:\n%s", err, said)
	}
	for _, f := range figures {
		value, err := strconv.ParseFloat(f[2], 64)
		switch {
		case err != nil:
			t.Fatalf("perfdhcp: %v:\n%s", err, said)
		case f[1] == "drops ratio":
			dropped = max(dropped, value)
		case value > 0:
			t.Errorf("%s:\n%s", f[0], said)
		}
	}
	return dropped, said
}

// plugIn puts the host's link load0, behind which a machine is, into a bridge.
func plugIn(t *testing.T, h *host, bridge string) {
	t.Helper()
	master, err := h.Links().LinkByName(bridge)
	if err != nil {
		t.Fatal(err)
	}
	link, err := h.Links().LinkByName("load0")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Links().LinkSetMaster(link, master); err != nil {
		t.Fatal(err)
	}
}

// output runs a command on a machine.
func output(machine *sandbox.Namespace, name string, args ...string) (string, error) {
	var out []byte
	err := machine.Do(func() (err error) {
		out, err = exec.Command(name, args...).CombinedOutput()
		return err
	})
	return string(out), err
}

// leases reads a network's file of leases: the address of each MAC. No address
// may be there twice, or lie outside of the pool.
func (h *host) leases(t *testing.T, spec netsetup.Spec) map[string]netip.Addr {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(h.dir, "state/leases", spec.Name+"*.json"))
	if err != nil || len(files) != 1 {
		t.Fatalf("files of leases: %v, %v", files, err)
	}
	file, err := os.Open(files[0])
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	leases, owners := map[string]netip.Addr{}, map[netip.Addr]string{}
	lines := bufio.NewScanner(file)
	lines.Scan() // the header
	for lines.Scan() {
		var l struct {
			MAC string
			IP  netip.Addr
		}
		if len(lines.Bytes()) == 0 {
			continue
		}
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			t.Fatalf("%v: %s", err, lines.Bytes())
		}
		if owner, taken := owners[l.IP]; taken && owner != l.MAC {
			t.Errorf("%s and %s both have %s", owner, l.MAC, l.IP)
		}
		if l.IP.Less(spec.PoolFirst) || spec.PoolLast.Less(l.IP) {
			t.Errorf("%s has %s, which is not of the pool", l.MAC, l.IP)
		}
		leases[l.MAC], owners[l.IP] = l.IP, l.MAC
	}
	return leases
}

// sameLeases asks again for some of the machines.
func (h *host) sameLeases(t *testing.T, relay *sandbox.Namespace, leases map[string]netip.Addr) {
	t.Helper()
	var client *dhcpload.Client
	err := relay.Do(func() (err error) {
		client, err = dhcpload.NewClient(netip.MustParseAddr(relayAddress), netip.MustParseAddr("10.64.0.1"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	asked := 0
	for mac, ip := range leases {
		hw, err := net.ParseMAC(mac)
		if err != nil {
			t.Fatal(err)
		}
		if hw[0] == 0x52 {
			continue // a port's, for which nobody else may ask
		}
		if got, err := client.Lease(t.Context(), hw); err != nil || got != ip {
			t.Errorf("%s had %s and gets %s, %v", mac, ip, got, err)
		}
		if asked++; asked == 100 {
			return
		}
	}
	t.Errorf("there were only %d machines to ask for", asked)
}
