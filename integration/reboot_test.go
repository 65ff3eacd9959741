package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
)

// reboot is what a power cut does to a host: no process of vmrun is left, nor
// link, rule and setting that it made. The boot's id is another.
func (h *host) reboot(t *testing.T, before state) {
	t.Helper()
	h.killStrangers(t, before)
	h.gone(t, before)
	const script = `
		for link in $(ls /sys/class/net | grep '^vm[rtv]'); do ip link del $link; done
		for table in filter nat; do iptables -t $table -F; iptables -t $table -X; done
		nft flush ruleset
		echo 0 >/proc/sys/net/ipv4/conf/eth1/forwarding`
	if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
		t.Fatalf("reboot: %v\n%s", err, out)
	}
	id := filepath.Join(t.TempDir(), "boot_id")
	write(t, id, "2cc03a54-7d5a-4bd9-95dc-b07b8a0ac8ee\n")
	const file = "/proc/sys/kernel/random/boot_id"
	if err := unix.Mount(id, file, "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("reboot: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(file, 0) })
}

// After a power cut the next run finds nothing in its way: neither where /run is
// fresh, as it should be, nor where another boot's files are still there. Its
// address is the one that it had.
func TestRunAfterReboot(t *testing.T) {
	beside(t)
	for _, c := range []struct {
		name  string
		fresh bool // /run is
		next  func(*testing.T, *host)
	}{
		{"run in a fresh folder", true, nil},
		{"run in a folder of another boot", false, nil},
		{"gc and run in a folder of another boot", false, func(t *testing.T, h *host) { t.Helper(); h.collectGarbage(t) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			sandbox.Run(t, func(t *testing.T) {
				feature.Needs(t, "qemu", "tun", "iptables")
				h := newHost(t)
				newOutside(t, h, "10.70.0.0/24")
				before := h.state(t)
				profile := writeProfile(t, t.TempDir(), "a", haltedGuest(t)+natLAN)
				vm := h.run(t, profile, "--grace", "0s")
				address := vm.tells(t, `address (\S+)`)[1]
				h.reboot(t, before)
				vm.exit(t)
				if c.fresh {
					for _, dir := range []string{filepath.Join(h.dir, "run"), "/run/vmrun"} {
						if err := os.RemoveAll(dir); err != nil {
							t.Fatal(err)
						}
					}
				}
				// Since the reboot the host's configuration has eth1 forward.
				setSysctl(t, "net/ipv4/conf/eth1/forwarding", "1")
				if c.next != nil {
					c.next(t, h)
				}
				again := h.run(t, profile, "--grace", "0s")
				if got := again.tells(t, `address (\S+)`)[1]; got != address {
					t.Errorf("the guest's address was %s and is %s", address, got)
				}
				terminate(t, again)
				if text, err := os.ReadFile("/proc/sys/net/ipv4/conf/eth1/forwarding"); err != nil || string(text) != "1\n" {
					t.Errorf("eth1 forwards: %q, %v; it has to as before the run", text, err)
				}
				setSysctl(t, "net/ipv4/conf/eth1/forwarding", "0")
				h.restored(t, before)
			})
		})
	}
}
