package integration

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/guest"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
)

// ownGuest is a way to boot the tests' own guest, which knows nothing of vmrun.
type ownGuest struct {
	name     string
	features []string
	// boot is the part of the profile; words go to the guest's kernel.
	boot func(t *testing.T, dir, words string) string
}

var ownGuests = []ownGuest{
	{"kernel", bootFeatures, func(t *testing.T, dir, words string) string {
		kernel, err := feature.Kernel()
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("[boot]\nkernel = %q\ninitrd = %q\ncmdline = %q\n", kernel.Image, guest.Initrd(t, dir), "quiet no_timer_check "+words)
	}},
	{"disk", append([]string{"syslinux", "mkfs.fat", "mtools"}, bootFeatures...), func(t *testing.T, dir, words string) string {
		return fmt.Sprintf("[[disks]]\npath = %q\n", guest.Disk(t, dir, words))
	}},
}

// A profile with its own kernel and initrd, and one that boots from a qcow2
// disk, work on every network.
func TestOwnGuest(t *testing.T) {
	beside(t)
	for _, mode := range []struct {
		name, network string
		features      []string
		lease, answer string
	}{
		{"nat", "mode = \"nat\"\nsubnet = \"10.70.0.0/24\"", []string{"tun", "iptables"},
			`10\.70\.0\.\d+/24 gw 10\.70\.0\.1 dns 10\.70\.0\.1`, `hello 192\.0\.2\.2`},
		{"host-only", "mode = \"host-only\"\nsubnet = \"10.70.0.0/24\"", []string{"tun", "iptables"},
			`10\.70\.0\.\d+/24 gw none `, `wget: can't connect to remote host \(192\.0\.2\.1\): Network is unreachable`},
		{"bridge", "mode = \"bridge\"\nuplink = \"eth2\"", []string{"tun", "dnsmasq"},
			`192\.0\.2\.1\d\d/24 gw 192\.0\.2\.1`, `hello 192\.0\.2\.1\d\d`},
		{"user", "mode = \"user\"", nil,
			`10\.0\.2\.15/24 gw 10\.0\.2\.2 dns 10\.0\.2\.3`, `hello 192\.0\.2\.2`},
	} {
		for _, own := range ownGuests {
			t.Run(mode.name+"/"+own.name, func(t *testing.T) {
				sandbox.Run(t, func(t *testing.T) {
					feature.Needs(t, append(mode.features, own.features...)...)
					h := newHost(t)
					lan, _ := newOutside(t, h, "10.70.0.0/24")
					if mode.name == "bridge" {
						lan.ServeDHCP(t)
						lan.Plug(t, h.Namespace, "eth2")
					}
					before := h.state(t)
					// QEMU would take what follows a comma for another option.
					dir := mkdir(t, filepath.Join(t.TempDir(), "images, readonly=on"))
					text := "[[nics]]\nnetwork = \"lan\"\n[networks.lan]\n" + mode.network + "\n" +
						own.boot(t, dir, "fetch=http://192.0.2.1/")
					vm := h.run(t, writeProfile(t, dir, "own", text))
					vm.expect(t, `own-guest: eth0 52:54:00:\S+ `+mode.lease)
					vm.expect(t, `own-guest: fetched `+mode.answer+`\n`)
					vm.expect(t, `own-guest: done`)
					vm.ends(t, 0)
					h.restored(t, before)
				})
			})
		}
	}
}
