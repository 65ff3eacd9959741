package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/guest"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
)

// dropping drops DHCP on its way over bridges, as some hosts' rules do.
func dropping(hook, port string) string {
	return fmt.Sprintf("add table bridge strict; add chain bridge strict c { type filter hook %s priority 0; }; add rule bridge strict c udp %s drop", hook, port)
}

// What keeps a guest from its address, or from listening, is found out and said.
func TestFailedBoot(t *testing.T) {
	beside(t)
	own := func(words string) func(t *testing.T) string {
		return func(t *testing.T) string {
			kernel, err := feature.Kernel()
			if err != nil {
				t.Fatal(err)
			}
			return fmt.Sprintf("[boot]\nkernel = %q\ninitrd = %q\ncmdline = %q\n", kernel.Image, guest.Initrd(t, t.TempDir()), "quiet no_timer_check stay "+words)
		}
	}
	for _, c := range []struct {
		name, rules, wait, says string
		boot                    func(t *testing.T) string
	}{
		{"no driver", "", "ip", "nic0 on lan: the guest never sent a frame", own("no-drivers")},
		{"no DHCP", "", "ip", "but never asked for an address", own("no-dhcp")},
		{"question dropped", dropping("input", "dport 67"), "ip", "the host's rules for bridges dropped it before the network's server heard it", own("")},
		{"answer dropped", dropping("output", "sport 67"), "ip", "no answer came through to it: the host's rules for bridges drop them", own("")},
		{"no listener", "", "port=1", "what was waited for does not listen", func(t *testing.T) string { return micro(t, serveScript) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			sandbox.Run(t, func(t *testing.T) {
				feature.Needs(t, append(bootFeatures, "tun", "iptables", "nftables")...)
				h := newHost(t)
				before := h.state(t)
				h.drops(t, c.rules)
				folder := filepath.Join(t.TempDir(), "report")
				profile := writeProfile(t, t.TempDir(), "web", natLAN+c.boot(t))
				code, out := h.vmrun(t, "run", "-d", "--wait", c.wait, "--wait-timeout", "40s", "--grace", "0s", "--report", folder+"/", profile)
				if code != 124 || !strings.Contains(out, c.says) {
					t.Errorf("run ends with %d and does not say %q:\n%s", code, c.says, out)
				}
				has(t, folder, "symptoms.json", c.says)
				has(t, folder, "network.json", `"name": "lan"`)
				has(t, folder, "plan.json", `"name": "web"`)
				h.drops(t, "delete")
				h.restored(t, before)
			})
		})
	}
}

// drops adds rules to the host, or deletes their table; "" does nothing.
func (h *host) drops(t *testing.T, rules string) {
	t.Helper()
	if rules == "" {
		return
	}
	if rules == "delete" {
		rules = "add table bridge strict; delete table bridge strict"
	}
	err := h.Do(func() error {
		out, err := exec.Command("nft", rules).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// has checks that a file of a report says something.
func has(t *testing.T, folder, name, says string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(folder, name))
	if err != nil || !strings.Contains(string(text), says) {
		t.Errorf("%s does not say %q: %v\n%s", name, says, err, text)
	}
}

// A panic is explained by the console, and the network is still there to be asked.
func TestPanicReport(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables")...)
		h := newHost(t)
		before := h.state(t)
		folder := t.TempDir()
		vm := h.run(t, writeProfile(t, t.TempDir(), "web", natLAN+micro(t, `echo c >/proc/sysrq-trigger`)), "--report", folder)
		vm.tells(t, `Kernel panic - not syncing: sysrq triggered crash`)
		vm.ends(t, 5)
		has(t, folder, "console.txt", "Kernel panic")
		has(t, folder, "symptoms.json", `"likely"`)
		has(t, folder, "report.json", `"code": 5`)
		h.restored(t, before)
	})
}
