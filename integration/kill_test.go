package integration

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
)

const (
	qemuWord   = "qemu-system-x86_64"
	keeperWord = " keeper"
	vmrunWord  = "/vmrun run "
)

// Whatever is killed, the host is as before soon afterwards, or after gc.
func TestKill(t *testing.T) {
	beside(t)
	for _, c := range []struct {
		name    string
		victims []string
		exit    int  // vmrun's, -1 where it is killed itself
		gc      bool // nobody is left who could clean up
	}{
		{name: "vmrun", victims: []string{vmrunWord}, exit: -1},
		{name: "qemu", victims: []string{qemuWord}, exit: 4},
		{name: "vmrun and qemu", victims: []string{vmrunWord, qemuWord}, exit: -1},
		{name: "keeper and vmrun", victims: []string{keeperWord, vmrunWord}, exit: -1, gc: true},
		{name: "keeper and qemu", victims: []string{keeperWord, qemuWord}, exit: 4},
		{name: "all", victims: []string{keeperWord, vmrunWord, qemuWord}, exit: -1, gc: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			onEachFirewall(t, func(t *testing.T, h *host) {
				newOutside(t, h, "10.70.0.0/24")
				before := h.state(t)
				vm := h.run(t, writeProfile(t, t.TempDir(), "web", natLAN+micro(t, serveScript)))
				vm.expect(t, `serving\n`)
				kill(t, unix.SIGKILL, c.victims...)
				vm.ends(t, c.exit)
				if c.gc {
					h.gone(t, before)
				} else {
					h.restoredButFiles(t, before)
				}
				if code, out := h.vmrun(t, "gc"); code != 0 {
					t.Errorf("gc ends with %d: %s", code, out)
				}
				h.restored(t, before)
				// The next run finds nothing in its way.
				again := h.run(t, writeProfile(t, t.TempDir(), "web", haltedGuest(t)+natLAN), "--grace", "0s")
				again.tells(t, joined)
				terminate(t, again)
				h.restored(t, before)
			})
		})
	}
}

// The next run of a name may come before the kernel is done with the run that was
// killed: its lock, its forwarded ports and its TAP are waited for.
func TestRunRightAfterKill(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, "qemu", "tun")
		h := newHost(t)
		before := h.state(t)
		forwarded := strings.Replace(natLAN, "\n\n", "\nforward = [\"8080:80\"]\n\n", 1)
		profile := writeProfile(t, t.TempDir(), "web", haltedGuest(t)+forwarded)
		vm := h.run(t, profile, "--grace", "0s")
		vm.tells(t, joined)
		for range feature.Amount(5, 50) {
			if err := vm.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			again := h.run(t, profile, "--grace", "0s")
			again.tells(t, joined)
			vm.exit(t)
			vm = again
		}
		terminate(t, vm)
		h.restored(t, before)
	})
}

// A network outlives its keeper: the guest goes on, and the end of the VM takes
// everything with it.
func TestKillKeeper(t *testing.T) {
	beside(t)
	onEachFirewall(t, func(t *testing.T, h *host) {
		newOutside(t, h, "10.70.0.0/24")
		before := h.state(t)
		vm := h.run(t, writeProfile(t, t.TempDir(), "web", natLAN+micro(t, reachScript)))
		vm.expect(t, `eth0 \S+ 10\.70\.0\.\d+/24`)
		vm.asks(t, "192.0.2.1", true)
		kill(t, unix.SIGKILL, keeperWord)
		vm.asks(t, "192.0.2.1", true)
		vm.asks(t, "outside.test", true)
		kill(t, unix.SIGKILL, keeperWord) // the one that adopted the network
		vm.asks(t, "192.0.2.1", true)
		vm.say(t, "")
		vm.ends(t, 0)
		h.restored(t, before)
	})
}

// A keeper ends when its last member leaves, not when somebody asks it to.
func TestKeeperIgnoresSignals(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables")...)
		h := newHost(t)
		before := h.state(t)
		vm := h.run(t, writeProfile(t, t.TempDir(), "web", natLAN+micro(t, serveScript)))
		lease := vm.expect(t, `eth0 \S+ (10\.70\.0\.\d+)/24`)
		vm.expect(t, `serving\n`)
		during := h.state(t)
		for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP} {
			kill(t, signal, keeperWord)
		}
		if err := reaches(t, h.Namespace, lease[1]); err != nil {
			t.Errorf("the host does not reach the guest: %v", err)
		}
		h.restored(t, during)
		vm.say(t, "")
		vm.ends(t, 0)
		h.restored(t, before)
	})
}

// Killed at any moment of its launch, a run leaves nothing that gc does not
// find.
func TestKillDuringLaunch(t *testing.T) {
	const moments, apart = 40, 4 * time.Millisecond
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables")...)
		h := newHost(t)
		newOutside(t, h, "10.70.0.0/24")
		before := h.state(t)
		profile := writeProfile(t, t.TempDir(), "web", natLAN+micro(t, serveScript))
		for i := range moments {
			vm := h.run(t, profile)
			select {
			case <-time.After(time.Duration(i) * apart): // the launch is what goes on meanwhile
			case <-vm.done:
			}
			h.killStrangers(t, before)
			vm.exit(t)
			h.gone(t, before)
			if code, out := h.vmrun(t, "gc"); code != 0 {
				t.Errorf("gc ends with %d: %s", code, out)
			}
			h.restored(t, before)
			if t.Failed() {
				t.Fatalf("killed %v after the start", time.Duration(i)*apart)
			}
		}
	})
}

// gc leaves alone what is in use.
func TestGCBesideRunningVM(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables")...)
		h := newHost(t)
		newOutside(t, h, "10.70.0.0/24")
		vm := h.run(t, writeProfile(t, t.TempDir(), "web", natLAN+micro(t, reachScript)))
		vm.expect(t, `eth0 \S+ 10\.70\.0\.\d+/24`)
		during := h.state(t)
		if code, out := h.vmrun(t, "gc"); code != 0 {
			t.Errorf("gc ends with %d: %s", code, out)
		}
		h.restored(t, during)
		vm.asks(t, "192.0.2.1", true)
		vm.say(t, "")
		vm.ends(t, 0)
	})
}
