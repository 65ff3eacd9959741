package integration

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/world"
)

const hostOnlyLab = `
[[nics]]
network = "lab"

[networks.lab]
mode = "host-only"
subnet = "10.71.0.0/24"
`

// insist makes a guest try the host as its router, though nobody told it to.
const insist = `ip route add default via 10.71.0.1 && echo insisting
`

// reachScript tells, each time a line with an address or a name is typed,
// whether HTTP is served there; an empty line ends it.
const reachScript = `
while read -r to && [ -n "$to" ]; do
	if fetch "$to" >/dev/null; then echo "answer: $to yes"; else echo "answer: $to no"; fi
done; echo stopping`

// asks has a guest that runs reachScript try an address: what it is to reach it may
// take a while to in the short form, as the guest's own limit is short beside other tests.
func (m *machine) asks(t *testing.T, address string, want bool) {
	t.Helper()
	if want && !feature.Long() {
		m.asksUntil(t, address)
		return
	}
	m.say(t, address)
	if got := m.expect(t, `answer: \S+ (yes|no)\n`); (got[1] == "yes") != want {
		t.Errorf("the guest reaches %s: %s; want %v", address, got[1], want)
	}
}

// The guest reaches the host and its neighbour, and nothing beyond the host,
// however the host forwards, and while the network's keeper is dead too.
func TestHostOnly(t *testing.T) {
	beside(t)
	onEachFirewall(t, func(t *testing.T, h *host) {
		_, outsider := newOutside(t, h, "10.71.0.0/24")
		for _, file := range []string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv4/conf/all/forwarding"} {
			if err := os.WriteFile(file, []byte("1"), 0); err != nil {
				t.Fatal(err)
			}
		}
		world.ServeHTTP(t, h.Namespace, ":8000")
		before := h.state(t)

		dir := t.TempDir()
		server := h.run(t, writeProfile(t, dir, "server", hostOnlyLab+micro(t, insist+serveScript)))
		lease := server.expect(t, `eth0 \S+ (10\.71\.0\.\d+)/24`)
		server.expect(t, `insisting\n`)
		server.expect(t, `serving\n`)
		client := h.run(t, writeProfile(t, dir, "client", hostOnlyLab+micro(t, insist+reachScript)))
		client.expect(t, `eth0 \S+ 10\.71\.0\.\d+/24`)
		client.expect(t, `insisting\n`)

		isolated := func() {
			t.Helper()
			client.asks(t, "10.71.0.1:8000", true)
			client.asks(t, lease[1], true)
			client.asks(t, world.Gateway, false)
			if err := reaches(t, h.Namespace, world.Gateway); err != nil {
				t.Errorf("the host does not reach the outside: %v", err)
			}
			if err := reaches(t, outsider, world.Host+":8000"); err != nil {
				t.Errorf("a machine outside does not reach the host: %v", err)
			}
			if err := reaches(t, outsider, lease[1]); err == nil {
				t.Error("a machine outside reaches the guest")
			}
		}
		isolated()
		release := h.keepDead(t, "lab")
		isolated()
		release()
		isolated()

		client.say(t, "")
		client.ends(t, 0)
		server.say(t, "")
		server.ends(t, 0)
		h.restored(t, before)
	})
}

// keepDead kills the keeper of a network and keeps its members from starting
// another, by the lock that whoever starts one has to take, until release.
func (h *host) keepDead(t *testing.T, network string) (release func()) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(h.dir, "run/nets", network+"*", "spawn.lock"))
	if err != nil || len(found) != 1 {
		t.Fatalf("find the spawn lock of %s: %v, %v", network, found, err)
	}
	lock, err := os.Open(found[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatalf("lock %s: %v", found[0], err)
	}
	kill(t, unix.SIGKILL, keeperWord)
	return func() { lock.Close() }
}
