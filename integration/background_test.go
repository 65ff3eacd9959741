package integration

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
	"github.com/vmrun/vmrun/integration/internal/world"
)

const supervisorWord = "vmrun supervisor "

// listed is what ps --json says of a VM, as far as the tests look at it.
type listed struct {
	Name  string
	State string
	PID   int
	NICs  []struct {
		IP   string
		Seen bool
	}
}

// listed are all VMs of the host.
func (h *host) listed(t *testing.T) []listed {
	t.Helper()
	code, out := h.vmrun(t, "ps", "--json")
	var all []listed
	if err := json.Unmarshal([]byte(out), &all); code != 0 || err != nil {
		t.Fatalf("ps ends with %d: %v\n%s", code, err, out)
	}
	return all
}

// does runs a command that has to succeed and say something.
func (h *host) does(t *testing.T, says string, args ...string) {
	t.Helper()
	if code, out := h.vmrun(t, args...); code != 0 || !strings.Contains(out, says) {
		t.Fatalf("vmrun %s ends with %d, and does not say %q:\n%s", strings.Join(args, " "), code, says, out)
	}
}

// A VM in the background lives on its network as one in the foreground does, is
// found and worked with, and leaves nothing.
func TestBackground(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables")...)
		h := newHost(t)
		newOutside(t, h, "10.70.0.0/24")
		before := h.state(t)
		profile := writeProfile(t, t.TempDir(), "web", natLAN+micro(t, serveScript))
		h.does(t, "web\n", "run", "-d", "--wait", "ip", profile)
		all := h.listed(t)
		if len(all) != 1 || all[0].Name != "web" || all[0].State != "running" || len(all[0].NICs) != 1 || !all[0].NICs[0].Seen {
			t.Fatalf("listed are %+v", all)
		}
		addr := all[0].NICs[0].IP
		h.does(t, addr+":80", "wait", "web", "--for", "port=80", "--timeout", "1m")
		if err := reaches(t, h.Namespace, addr); err != nil {
			t.Errorf("the host does not reach the guest: %v", err)
		}
		h.does(t, "serving", "wait", "web", "--for", "log=^serving$", "--timeout", "1m")

		h.does(t, "web: paused", "pause", "web")
		if err := reaches(t, h.Namespace, addr); err == nil {
			t.Error("a paused guest answers")
		}
		h.does(t, "web: running", "resume", "web")
		if err := reaches(t, h.Namespace, addr); err != nil {
			t.Errorf("after a pause the host does not reach the guest: %v", err)
		}

		follow := h.start(t, h.command(t, "logs", "-f", "web"))
		follow.expect(t, `serving\n`)
		one, two := h.start(t, h.command(t, "console", "web")), h.start(t, h.command(t, "console", "web"))
		one.expect(t, `serving\n`)
		two.expect(t, `serving\n`)
		one.say(t, "")
		for _, m := range []*machine{one, two, follow} {
			m.expect(t, `stopping\n`)
			m.ends(t, 0)
		}
		h.restored(t, before)
	})
}

// Stop waits for a guest that hears its button, and ends one that hangs in its
// BIOS, looking for something to boot from.
func TestStopInBackground(t *testing.T) {
	beside(t)
	for _, c := range []struct {
		name, wait, grace, says string
		boot                    func(t *testing.T) string
		features                []string
	}{
		{"guest", "log=^serving", "1m", "web: the guest powered off",
			func(t *testing.T) string { return micro(t, serveScript) }, bootFeatures},
		{"bios", "log=iPXE|SeaBIOS", "200ms", "web: QEMU was told to quit",
			func(*testing.T) string { return "" }, []string{"qemu"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			sandbox.Run(t, func(t *testing.T) {
				feature.Needs(t, append(c.features, "tun", "iptables")...)
				h := newHost(t)
				before := h.state(t)
				profile := writeProfile(t, t.TempDir(), "web", natLAN+c.boot(t))
				h.does(t, "web\n", "run", "-d", "--wait", c.wait, profile)
				h.does(t, c.says, "stop", "web", "--grace", c.grace)
				h.restored(t, before)
			})
		})
	}
}

// A supervisor that is killed takes QEMU along; the VM is dead then, gc forgets
// it, and the host is as before.
func TestSupervisorKilled(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables")...)
		h := newHost(t)
		newOutside(t, h, "10.70.0.0/24")
		before := h.state(t)
		profile := writeProfile(t, t.TempDir(), "web", natLAN+micro(t, serveScript))
		h.does(t, "web\n", "run", "-d", "--wait", "log=^serving", profile)
		kill(t, unix.SIGKILL, supervisorWord)
		h.restoredButFiles(t, before)
		if all := h.listed(t); len(all) != 1 || all[0].State != "dead" || all[0].PID != 0 {
			t.Errorf("listed are %+v", all)
		}
		if code, out := h.vmrun(t, "stop", "web"); code != 1 || !strings.Contains(out, "it is dead") {
			t.Errorf("stop ends with %d: %s", code, out)
		}
		h.does(t, "web", "gc")
		h.restored(t, before)
	})
}

// What asks for a VM in the background and is not waited for any more leaves
// nothing, or with --keep the VM as it is.
func TestInterruptedWait(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables")...)
		h := newHost(t)
		newOutside(t, h, "10.70.0.0/24")
		before := h.state(t)
		profile := writeProfile(t, t.TempDir(), "web", natLAN+micro(t, serveScript))
		starter := h.start(t, h.command(t, "run", "-d", "--wait", "log=never", profile))
		starter.tells(t, `joined network lan`)
		h.does(t, "web", "wait", "web", "--for", "ip")
		if err := unix.Kill(starter.cmd.Process.Pid, unix.SIGINT); err != nil {
			t.Fatal(err)
		}
		starter.ends(t, 130)
		h.restored(t, before)

		starter = h.start(t, h.command(t, "run", "-d", "--keep", "--wait", "log=never", profile))
		starter.tells(t, `web: waiting for log=never`)
		if err := unix.Kill(starter.cmd.Process.Pid, unix.SIGINT); err != nil {
			t.Fatal(err)
		}
		starter.ends(t, 130)
		if all := h.listed(t); len(all) != 1 || all[0].Name != "web" || all[0].State != "running" {
			t.Errorf("listed are %+v", all)
		}
		h.does(t, "web: QEMU was killed", "kill", "web")
		h.restored(t, before)
	})
}

// Who starts a VM in the background and is killed meanwhile leaves one that runs,
// or nothing.
func TestStarterKilled(t *testing.T) {
	const moments, apart = 8, 15 * time.Millisecond
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables")...)
		h := newHost(t)
		newOutside(t, h, "10.70.0.0/24")
		before := h.state(t)
		profile := writeProfile(t, t.TempDir(), "web", natLAN+micro(t, serveScript))
		for i := range moments {
			starter := h.run(t, profile, "-d")
			select {
			case <-time.After(time.Duration(i) * apart): // the launch is what goes on meanwhile
			case <-starter.done:
			}
			starter.cmd.Process.Kill() // it may have ended
			starter.exit(t)
			h.does(t, "", "kill", "--all")
			h.restored(t, before)
			if t.Failed() {
				t.Fatalf("killed %v after the start", time.Duration(i)*apart)
			}
		}
	})
}

// A guest whose address comes from somebody else's DHCP server is seen to use it.
func TestWaitForForeignAddress(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "dnsmasq")...)
		h, lan := newHost(t), world.NewLAN(t)
		lan.ServeDHCP(t)
		lan.Plug(t, h.Namespace, "eth1")
		before := h.state(t)
		profile := writeProfile(t, t.TempDir(), "web", fmt.Sprintf(
			"[[nics]]\nnetwork = \"lan\"\n[networks.lan]\nmode = \"bridge\"\nuplink = \"eth1\"\n%s", micro(t, serveScript)))
		h.does(t, "web\n", "run", "-d", "--wait", "ip", profile)
		if all := h.listed(t); len(all) != 1 || !strings.HasPrefix(all[0].NICs[0].IP, "192.0.2.") {
			t.Errorf("listed are %+v", all)
		}
		h.does(t, "web", "stop", "web")
		h.restored(t, before)
	})
}

// events without names tells of a VM that starts later and of its network, from the
// lease to the end, a killed keeper and flushed rules among it; and of networks that
// only attached cards are on, whether they were there before or came and went.
func TestEvents(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables", "nftables")...)
		h := newHost(t)
		newOutside(t, h, "10.70.0.0/24")
		before := h.state(t)
		profile := writeProfile(t, t.TempDir(), "web", natLAN+micro(t, serveScript))
		h.does(t, "first\n", "run", "-d", "--name", "first", profile)
		h.does(t, "nic1\n", "attach", "nic", "first", "host-only")
		events := h.start(t, h.command(t, "events"))
		const leased = `"source":"network","event":"LEASED".*"network":"(lan|host-only)"`
		if one, other := events.expect(t, leased)[1], events.expect(t, leased)[1]; one == other {
			t.Errorf("network %s gave two addresses", one)
		}
		h.does(t, "web\n", "run", "-d", "--wait", "ip", profile)
		for _, event := range []string{"JOINED", "LEASED"} {
			events.expect(t, `"vm":"web","source":"network","event":"`+event+`","data":{"network":"lan",.*"ip":"10\.70\.0\.`)
		}
		for range 2 {
			h.does(t, "nic1\n", "attach", "nic", "web", "nat")
			events.expect(t, `"vm":"web","source":"vmrun","event":"ATTACHED","data":{"id":"nic1","kind":"nic","what":"nat","link":"vmt`)
			for _, event := range []string{"JOINED", "LEASED"} { // which may be over when the card is told
				events.expect(t, `"vm":"web","source":"network","event":"`+event+`","data":{"network":"nat"`)
			}
			h.does(t, "", "detach", "web", "nic1")
			events.expect(t, `"source":"network","event":"DOWN","data":{"network":"nat"`)
		}
		h.drops(t, "flush ruleset")
		events.expect(t, `"vm":"","source":"network","event":"RESTORED"`)
		kill(t, unix.SIGKILL, keeperWord)
		events.expect(t, `"event":"KEEPER_GONE"`)
		events.expect(t, `"event":"ADOPTED"`)
		h.does(t, "", "kill", "--all")
		events.expect(t, `"source":"network","event":"DOWN"`)
		events.cmd.Process.Kill()
		events.exit(t)
		h.restored(t, before)
	})
}
