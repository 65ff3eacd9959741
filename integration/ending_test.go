package integration

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
)

// A signal ends the VM in order, with a code that tells which signal it was.
func TestSignals(t *testing.T) {
	beside(t)
	for _, c := range []struct {
		signal unix.Signal
		code   int
	}{
		{unix.SIGINT, 130}, {unix.SIGTERM, 143}, {unix.SIGHUP, 129}, {unix.SIGQUIT, 131},
	} {
		t.Run(c.signal.String(), func(t *testing.T) {
			sandbox.Run(t, func(t *testing.T) {
				feature.Needs(t, append(bootFeatures, "tun", "iptables")...)
				h := newHost(t)
				before := h.state(t)
				vm := h.run(t, writeProfile(t, t.TempDir(), "web", natLAN+micro(t, serveScript)))
				vm.expect(t, `serving\n`)
				if err := vm.cmd.Process.Signal(c.signal); err != nil {
					t.Fatal(err)
				}
				vm.ends(t, c.code)
				h.restored(t, before)
			})
		})
	}
}

// The network boot ROM is one more DHCP client, and one that heeds no power
// button.
func TestNetworkBoot(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, "qemu", "tun", "iptables", "ipxe")
		h := newHost(t)
		before := h.state(t)
		vm := h.run(t, writeProfile(t, t.TempDir(), "net", natLAN), "--grace=100ms")
		vm.expect(t, `net0: 10\.70\.0\.\d+/255\.255\.255\.0 gw 10\.70\.0\.1`)
		if err := vm.cmd.Process.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		vm.ends(t, 143)
		h.restored(t, before)
	})
}

func TestTimeout(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables")...)
		h := newHost(t)
		before := h.state(t)
		vm := h.run(t, writeProfile(t, t.TempDir(), "web", haltedGuest(t)+natLAN), "--timeout=10s", "--grace=0s")
		vm.tells(t, joined)
		vm.ends(t, 124)
		h.restored(t, before)
	})
}

func TestPanic(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables")...)
		h := newHost(t)
		before := h.state(t)
		vm := h.run(t, writeProfile(t, t.TempDir(), "web", natLAN+micro(t, `echo c >/proc/sysrq-trigger`)))
		vm.expect(t, `Kernel panic`)
		vm.ends(t, 5)
		h.restored(t, before)
	})
}
