package integration

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/vmrun/vmrun/integration/internal/debian"
	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
	"github.com/vmrun/vmrun/integration/internal/world"
)

// A guest with systemd and udev takes devices while it runs, lets go of them and
// goes on from a snapshot. One boot has to do for all: it takes the longest.
func TestDebianChanges(t *testing.T) {
	guest := debian.Find(t)
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables")...)
		h := newHost(t)
		newOutside(t, h, "10.70.0.0/24")
		dir := t.TempDir()
		before := h.state(t)
		h.background(t, writeProfile(t, dir, "debian", "max_cpus = 2\n"+guest.Profile()+natLAN), "debian")
		for _, step := range []struct {
			name string
			do   func(t *testing.T, h *host)
		}{
			{"disk", changeDisk},
			{"nic", changeNIC},
			{"cpus", changeCPUs},
			{"memory", changeMemory},
			{"snapshot", changeBack},
		} {
			t.Run(step.name, func(t *testing.T) { step.do(t, h) })
		}
		h.does(t, "debian: ", "kill", "debian")
		h.restored(t, before)
	})
}

// changeDisk attaches a disk, mounts it and takes it away again.
func changeDisk(t *testing.T, h *host) {
	disk := filepath.Join(t.TempDir(), "data.raw")
	if err := os.WriteFile(disk, make([]byte, 4<<20), 0o666); err != nil {
		t.Fatal(err)
	}
	with := h.state(t)
	was := h.inGuest(t, "debian", "ls /sys/block")
	h.does(t, "disk1\n", "attach", "disk", "debian", disk, "--format", "raw", "--keep")
	// The guest may be booting still: a service that starts in a mount namespace of its
	// own has a copy of the mount, and while that is in use the mount is busy.
	h.inGuest(t, "debian", "until [ -b /dev/vdb ]; do sleep .1; done; mkfs.ext4 -q /dev/vdb && mount /dev/vdb /mnt && echo kept >/mnt/word && until umount /mnt; do sleep .1; done")
	if got := h.inGuest(t, "debian", "lsblk -bno SIZE /dev/vdb"); got != "4194304" {
		t.Errorf("the guest sees a disk of %s bytes", got)
	}
	h.does(t, "", "detach", "debian", "disk1")
	if got := h.inGuest(t, "debian", "ls /sys/block"); got != was {
		t.Errorf("the guest has the disks %q, and had %q", got, was)
	}
	h.restoredButFiles(t, with)
	image, err := os.ReadFile(disk)
	if err != nil || !strings.Contains(string(image), "kept\n") {
		t.Errorf("the image does not hold what the guest wrote, %v", err)
	}
}

// changeNIC attaches a card, by which the guest then has an address, and takes
// it away again.
func changeNIC(t *testing.T, h *host) {
	with := h.state(t)
	was := h.inGuest(t, "debian", "ls /sys/class/net")
	h.does(t, "nic1\n", "attach", "nic", "debian", "host-only", "--mac", "52:54:00:00:00:99")
	card := h.inGuest(t, "debian", "until grep -ls 52:54:00:00:00:99 /sys/class/net/*/address; do sleep .1; done")
	name := filepath.Base(filepath.Dir(card))
	h.inGuest(t, "debian", "until ip -4 addr show "+name+" | grep 'inet '; do sleep .1; done")
	h.does(t, "", "detach", "debian", "nic1")
	if got := h.inGuest(t, "debian", "ls /sys/class/net"); got != was {
		t.Errorf("the guest has the cards %q, and had %q", got, was)
	}
	h.restoredButFiles(t, with)
}

// changeCPUs adds a CPU, which the guest then uses. Under TCG it stays.
func changeCPUs(t *testing.T, h *host) {
	h.does(t, "2 CPUs", "resize", "debian", "--cpus", "2")
	h.inGuest(t, "debian", "until [ -e /sys/devices/system/cpu/cpu1/online ]; do sleep .1; done; echo 1 >/sys/devices/system/cpu/cpu1/online")
	if got := h.inGuest(t, "debian", "nproc"); got != "2" {
		t.Errorf("the guest has %s CPUs", got)
	}
	if code, out := h.vmrun(t, "resize", "debian", "--cpus", "1"); code != 1 || !strings.Contains(out, "under TCG") {
		t.Errorf("taking it away ends with %d: %s", code, out)
	}
}

// changeMemory has the guest give memory back, and gives it again.
func changeMemory(t *testing.T, h *host) {
	available := func() int {
		kib, err := strconv.Atoi(h.inGuest(t, "debian", `sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo`))
		if err != nil {
			t.Fatal(err)
		}
		return kib << 10
	}
	const taken = 160 << 20
	before := available()
	h.does(t, "352MiB", "resize", "debian", "--memory", "352MiB")
	if less := before - available(); less < taken*3/4 {
		t.Errorf("the guest has %d bytes less, want %d", less, taken)
	}
	h.does(t, "512MiB", "resize", "debian", "--memory", "512MiB")
	if less := before - available(); less > taken/4 {
		t.Errorf("the guest has %d bytes less, and got all back", less)
	}
}

// changeBack saves the guest, changes it, and goes on from what was saved: with
// the process and the files that were there, the disk that was attached, and a
// network that works.
func changeBack(t *testing.T, h *host) {
	h.inGuest(t, "debian", "systemd-run -q --unit=before sleep infinity; echo then | tee /run/word >/root/word; sync")
	const process = "systemctl show -P MainPID before; systemctl is-active before"
	was := h.inGuest(t, "debian", process)
	addr := h.listed(t)[0].NICs[0].IP
	disk := filepath.Join(t.TempDir(), "data.raw")
	if err := os.WriteFile(disk, []byte(strings.Repeat("data", 1<<18)), 0o666); err != nil {
		t.Fatal(err)
	}
	h.does(t, "disk1\n", "attach", "disk", "debian", disk, "--format", "raw")
	h.inGuest(t, "debian", "until [ -b /dev/vdb ]; do sleep .1; done; echo then >/dev/vdb; sync")
	h.does(t, "debian: saved as one", "snapshot", "save", "debian", "one")
	h.inGuest(t, "debian", "systemctl stop before; echo now_ >/dev/vdb; echo now | tee /run/word >/root/word; sync")
	h.does(t, "one", "snapshot", "ls", "debian")
	h.does(t, "debian\n", "snapshot", "restore", "debian", "one", "--wait", "agent")
	if got := h.inGuest(t, "debian", "cat /run/word /root/word"); got != "then\nthen" {
		t.Errorf("the guest finds %q", got)
	}
	if got := h.inGuest(t, "debian", process); got != was || !strings.HasSuffix(got, "\nactive") {
		t.Errorf("the process is %q, and was %q", got, was)
	}
	if got := h.inGuest(t, "debian", "head -c 4 /dev/vdb; nproc"); got != "then2" {
		t.Errorf("its disk and its CPUs are %q", got)
	}
	h.does(t, "", "detach", "debian", "disk1")
	h.inGuest(t, "debian", "[ ! -e /dev/vdb ]")
	h.inGuest(t, "debian", "bash -c 'exec 3<>/dev/tcp/"+world.Gateway+"/80; printf \"GET / HTTP/1.0\\r\\n\\r\\n\" >&3; grep -q hello <&3'")
	if got := h.listed(t)[0].NICs[0].IP; got != addr {
		t.Errorf("the guest has %s, and had %s", got, addr)
	}
	h.does(t, "", "snapshot", "rm", "debian", "one")
	if code, out := h.vmrun(t, "snapshot", "restore", "debian", "one"); code == 0 || !strings.Contains(out, "there is none") {
		t.Errorf("restoring what was removed ends with %d: %s", code, out)
	}
}
