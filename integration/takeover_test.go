package integration

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
	"github.com/vmrun/vmrun/integration/internal/world"
)

const takeoverNetwork = `
	[[nics]]
	network = "lan"
	[networks.lan]
	mode = "bridge"
	uplink = "eth1"
	takeover = true
`

// The host's only uplink is the guest's as well: the guest is one more machine on
// the LAN, the host still is one, and whoever was connected to it notices nothing.
// What was done is what plan has said.
func TestTakeover(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables", "dnsmasq")...)
		h, lan := newHost(t), world.NewLAN(t)
		lan.ServeDHCP(t)
		world.ServeHTTP(t, lan.Gateway, world.Gateway+":80")
		neighbour := lan.Machine(t, "192.0.2.3/24")
		lan.Uplink(t, h.Namespace, "eth1")
		session := connect(t, neighbour, h.Namespace)
		before := h.state(t)

		profile := writeProfile(t, t.TempDir(), "machine", takeoverNetwork+micro(t, `echo "outside: $(fetch 192.0.2.1)"`+serveScript))
		planned := plan(t, h, profile)
		h.restored(t, before) // planning changes nothing
		vm := h.run(t, profile)
		lease := vm.expect(t, `vmrun-guest: eth0 52:54:00:\S+ (192\.0\.2\.1\d\d)/24 gw 192\.0\.2\.1\b`)
		vm.expect(t, `outside: hello `+lease[1]+`\n`)
		vm.expect(t, `serving\n`)
		if diff := cmp.Diff(planned.steps(), h.stepsDone(t)); diff != "" {
			t.Errorf("steps, as planned (-) and done (+):\n%s", diff)
		}
		if err := reaches(t, neighbour, lease[1]); err != nil {
			t.Errorf("a machine on the LAN does not reach the guest: %v", err)
		}
		session.works(t)
		if got, err := world.Fetch(t.Context(), h.Namespace, world.Gateway); err != nil || got != "hello "+world.Host+"\n" {
			t.Errorf("the host reaches the LAN: %q, %v; want hello %s", got, err, world.Host)
		}
		if err := reaches(t, h.Namespace, lease[1]); err != nil {
			t.Errorf("the host does not reach the guest: %v", err)
		}
		vm.say(t, "")
		vm.ends(t, 0)
		session.works(t)
		h.restored(t, before)
	})
}

// Whatever is killed under a running guest, the host has its uplink; and all its
// own again as soon as a command has run where nobody was left to do it.
func TestTakeoverKilled(t *testing.T) {
	beside(t)
	for _, c := range []struct {
		name  string
		words []string
		gc    bool
	}{
		{"supervisor", []string{"vmrun run"}, false},
		{"keeper and supervisor", []string{"vmrun keeper", "vmrun run"}, false},
		{"everything", []string{"vmrun keeper", "vmrun deadman", "vmrun run", "qemu-system"}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			sandbox.Run(t, func(t *testing.T) {
				feature.Needs(t, append(bootFeatures, "tun", "iptables", "dnsmasq")...)
				h, lan := newHost(t), world.NewLAN(t)
				lan.ServeDHCP(t)
				neighbour := lan.Machine(t, "192.0.2.3/24")
				lan.Uplink(t, h.Namespace, "eth1")
				session := connect(t, neighbour, h.Namespace)
				before := h.state(t)
				vm := h.run(t, writeProfile(t, t.TempDir(), "machine", takeoverNetwork+micro(t, "read -r line")))
				vm.expect(t, `vmrun-guest: eth0 \S+ 192\.0\.2\.1`)
				kill(t, 9, c.words...)
				session.works(t)
				if c.gc {
					h.gone(t, before)
					if code, output := h.vmrun(t, "gc"); code != 0 {
						t.Errorf("gc: %d\n%s", code, output)
					}
				}
				h.restoredButFiles(t, before)
				session.works(t)
			})
		})
	}
}

// A used uplink without takeover is refused before anything is done.
func TestUsedUplinkIsRefused(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables")...)
		h, lan := newHost(t), world.NewLAN(t)
		lan.Uplink(t, h.Namespace, "eth1")
		before := h.state(t)
		profile := writeProfile(t, t.TempDir(), "machine", strings.Replace(takeoverNetwork, "takeover = true", "", 1)+micro(t, "true"))
		code, output := h.vmrun(t, "run", profile)
		if code != 3 || !strings.Contains(output, "eth1 is in use by the host (it has 192.0.2.2/24") || !strings.Contains(output, "takeover = true") {
			t.Errorf("exit code %d\n%s", code, output)
		}
		h.restored(t, before)
	})
}

// connection is one between two machines of the LAN.
type connection struct{ a, b net.Conn }

// connect connects a machine with the host, as an administrator's ssh would.
func connect(t *testing.T, from, host *sandbox.Namespace) connection {
	t.Helper()
	var c connection
	var l net.Listener
	err := host.Do(func() (err error) {
		l, err = net.Listen("tcp", world.Host+":0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = from.Do(func() (err error) {
		c.a, err = net.Dial("tcp", l.Addr().String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.a.Close(); c.b.Close() })
	return c
}

// works fails the test unless bytes go both ways.
func (c connection) works(t *testing.T) {
	t.Helper()
	for _, way := range [][2]net.Conn{{c.a, c.b}, {c.b, c.a}} {
		got := make([]byte, 5)
		way[0].SetDeadline(time.Now().Add(20 * time.Second))
		way[1].SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := way[0].Write([]byte("hello")); err != nil {
			t.Fatalf("the connection over the uplink ended: %v", err)
		}
		if _, err := io.ReadFull(way[1], got); err != nil {
			t.Fatalf("the connection over the uplink ended: %v", err)
		}
	}
}
