package integration

import (
	"testing"
	"time"

	"github.com/vmrun/vmrun/integration/internal/debian"
	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
)

// debianPatience is how long a Debian guest may take to boot, under TCG on a
// machine that has more to do.
const debianPatience = 3 * time.Minute

// A real guest boots from a throw-away disk, gets its address and powers off.
func TestDebianGuest(t *testing.T) {
	guest := debian.Find(t)
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, "qemu", "qemu-img")
		h := newHost(t)
		before := h.state(t)
		vm := h.run(t, writeProfile(t, t.TempDir(), "debian", guest.Profile()+"[[nics]]\nnetwork = \"user\"\n"))
		vm.awaits(t, `debian login: `, debianPatience)
		vm.expect(t, `root@debian:~# `)
		vm.say(t, "networkctl status | cat; poweroff")
		vm.expect(t, `10\.0\.2\.15`)
		vm.ends(t, 0)
		h.restored(t, before)
	})
}
