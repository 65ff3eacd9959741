package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
	"github.com/vmrun/vmrun/integration/internal/world"
)

// inGuest runs a command in a guest that has to succeed, and returns what it said.
func (h *host) inGuest(t *testing.T, vm, script string) string {
	t.Helper()
	code, out, errs := h.exec(t, nil, vm, "--", "sh", "-c", script)
	if code != 0 {
		t.Fatalf("%s ends with %d: %s%s", script, code, out, errs)
	}
	return strings.TrimSpace(out)
}

// A guest goes on from its snapshot as if nothing had been: its memory, its
// files, its disks and its address are those of then, its network is up again,
// and nothing is left afterwards.
func TestSnapshot(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables", "qemu-img")...)
		h := newHost(t)
		newOutside(t, h, "10.70.0.0/24")
		dir := t.TempDir()
		for _, name := range []string{"thrown.raw", "kept.raw"} {
			if err := os.WriteFile(filepath.Join(dir, name), make([]byte, 1<<20), 0o666); err != nil {
				t.Fatal(err)
			}
		}
		before := h.state(t)
		profile := writeProfile(t, dir, "web", natLAN+micro(t, serveScript)+
			"\n[[disks]]\npath = \"thrown.raw\"\n\n[[disks]]\npath = \"kept.raw\"\nkeep = true\n")
		h.background(t, profile, "web")
		addr := h.listed(t)[0].NICs[0].IP
		write := func(word string) {
			h.inGuest(t, "web", "echo "+word+" >/tmp/word; for d in vda vdb; do echo "+word+" >/dev/$d; done; sync")
		}
		write("then")
		h.does(t, "web: saved as one", "snapshot", "save", "web", "one")
		write("now_")
		h.does(t, "web: ", "kill", "web")
		h.restoredButFiles(t, before)
		for range 2 {
			h.does(t, "web\n", "snapshot", "restore", "web", "one", "--wait", "agent")
			if got := h.inGuest(t, "web", "cat /tmp/word; for d in vda vdb; do head -c 4 /dev/$d; echo; done"); got != "then\nthen\nthen" {
				t.Errorf("the guest finds %q", got)
			}
			if got := h.listed(t)[0].NICs[0].IP; got != addr {
				t.Errorf("the guest has %s, and had %s", got, addr)
			}
			h.inGuest(t, "web", "wget -qO- http://"+world.Gateway+"/")
			if err := reaches(t, h.Namespace, addr); err != nil {
				t.Errorf("the host does not reach the restored guest: %v", err)
			}
			write("new_")
		}
		h.does(t, "one", "snapshot", "ls", "web")
		h.does(t, "", "snapshot", "rm", "web", "one")
		h.does(t, "web: ", "kill", "web")
		h.restored(t, before)
	})
}

// Disks and cards come and go in a running guest, on either machine that takes
// them, and what is not taken away goes with the VM.
func TestAttach(t *testing.T) {
	beside(t)
	for _, machineType := range []string{"q35", "pc"} {
		t.Run(machineType, func(t *testing.T) {
			sandbox.Run(t, func(t *testing.T) {
				feature.Needs(t, append(bootFeatures, "tun", "iptables", "qemu-img")...)
				h := newHost(t)
				newOutside(t, h, "10.70.0.0/24")
				dir := t.TempDir()
				disk := filepath.Join(dir, "data.raw")
				if err := os.WriteFile(disk, []byte(strings.Repeat("data", 1<<18)), 0o666); err != nil {
					t.Fatal(err)
				}
				before := h.state(t)
				profile := writeProfile(t, dir, "web", natLAN+micro(t, serveScript)+"\n")
				start := []string{"run", "-d", "--wait", "agent", "--set", "machine.type=" + machineType, "--set", "machine.max_cpus=2", profile}
				h.does(t, "web\n", start...)
				with := h.state(t)

				h.does(t, "disk0\n", "attach", "disk", "web", disk, "--format", "raw")
				if got := h.inGuest(t, "web", "until [ -e /dev/vda ]; do :; done; head -c 4 /dev/vda"); got != "data" {
					t.Errorf("the disk holds %q", got)
				}
				h.does(t, "nic1\n", "attach", "nic", "web", "host-only")
				inet := h.inGuest(t, "web", "until ip -4 addr show eth1 2>/dev/null | grep inet; do :; done")
				if !strings.Contains(inet, "inet ") {
					t.Fatalf("the card has %q", inet)
				}
				if got := h.inGuest(t, "web", "until [ $(grep -c nameserver /etc/resolv.conf) = 2 ]; do :; done; echo both"); got != "both" {
					t.Errorf("the guest resolves by %q", got)
				}
				cards := []string{"ps", "--format", "{{range .NICs}}{{.ID}} {{.Network}} {{.IP}} {{.Seen}},{{end}}"}
				h.does(t, regexp.MustCompile(`inet ([\d.]+)`).FindStringSubmatch(inet)[1]+" true,\n", cards...)
				h.does(t, "2 CPUs, 256MiB", "resize", "web", "--cpus", "2", "--memory", "256MiB")
				if got := h.inGuest(t, "web", "until [ $(nproc) = 2 ]; do :; done; nproc"); got != "2" {
					t.Errorf("the guest has %s CPUs", got)
				}
				h.does(t, "", "detach", "web", "nic1")
				h.does(t, "", "detach", "web", "disk0")
				if code, out := h.vmrun(t, "detach", "web", "disk0"); code != 1 || !strings.Contains(out, "no such device") {
					t.Errorf("detaching twice ends with %d: %s", code, out)
				}
				if got := h.inGuest(t, "web", "until [ $(grep -c nameserver /etc/resolv.conf) = 1 ]; do :; done; echo one"); got != "one" {
					t.Errorf("without the card the guest resolves by %q", got)
				}
				if _, out := h.vmrun(t, cards...); strings.Contains(out, "nic1") {
					t.Errorf("after nic1 is detached ps says %s", out)
				}
				h.restoredButFiles(t, with)

				h.does(t, "nic1\n", "attach", "nic", "web", "host-only") // left to the VM's end
				h.does(t, "web: ", "kill", "web")
				h.restored(t, before)
			})
		})
	}
}

// A snapshot is not restored onto a network that is defined differently now, for others
// or itself: the key is told, the VM of its name runs on, and once that network is gone
// the snapshot is good again.
func TestSnapshotOtherNetwork(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables")...)
		h := newHost(t)
		newOutside(t, h, "10.70.0.0/24")
		dir := t.TempDir()
		before := h.state(t)
		h.does(t, "web\n", "run", "-d", writeProfile(t, dir, "web", haltedGuest(t)+natLAN))
		h.does(t, "web: saved as one", "snapshot", "save", "web", "one")
		h.does(t, "web: ", "kill", "web")
		other := writeProfile(t, dir, "other", strings.TrimPrefix(natLAN, "\n[[nics]]\nnetwork = \"lan\"\n")+"mtu = 1400\n")
		h.does(t, "", "net", "up", other)
		refused := func(when string) {
			t.Helper()
			with := h.state(t)
			if code, out := h.vmrun(t, "snapshot", "restore", "web", "one"); code != 1 || !strings.Contains(out, ": lan is running with another definition: mtu (1400 there, ") {
				t.Errorf("%s: restore ends with %d: %s", when, code, out)
			}
			h.restoredButFiles(t, with)
		}
		refused("it does not run")
		h.does(t, "web\n", "run", "-d", writeProfile(t, dir, "web", haltedGuest(t)+natLAN+"mtu = 1400\n"))
		refused("it runs, and the network is held")
		if code, out := h.vmrun(t, "net", "down", "lan"); code != 1 {
			t.Errorf("net down ends with %d: %s", code, out)
		}
		h.does(t, "web\n", "snapshot", "restore", "web", "one") // with the VM that was on it goes the network
		h.does(t, "", "snapshot", "rm", "web", "one")
		h.does(t, "web: ", "kill", "web")
		h.restored(t, before)
	})
}

// What was attached comes back with a snapshot, at its place on either machine, and
// can be detached then. A disk that is gone is told before anything ends.
func TestSnapshotAttached(t *testing.T) {
	beside(t)
	for _, machineType := range []string{"q35", "pc"} {
		t.Run(machineType, func(t *testing.T) {
			sandbox.Run(t, func(t *testing.T) {
				feature.Needs(t, append(bootFeatures, "tun", "iptables", "qemu-img")...)
				h := newHost(t)
				newOutside(t, h, "10.70.0.0/24")
				dir := t.TempDir()
				for _, name := range []string{"first.raw", "thrown.raw", "kept.raw"} {
					if err := os.WriteFile(filepath.Join(dir, name), make([]byte, 1<<20), 0o666); err != nil {
						t.Fatal(err)
					}
				}
				before := h.state(t)
				profile := writeProfile(t, dir, "web", natLAN+micro(t, serveScript)+"\n")
				h.does(t, "web\n", "run", "-d", "--wait", "agent", "--set", "machine.type="+machineType, "--set", "machine.max_cpus=2", profile)
				addr := attachAll(t, h, dir)
				writeAttached(t, h, "then")
				h.does(t, "web: saved as one", "snapshot", "save", "web", "one")
				writeAttached(t, h, "now_")
				refusedWithout(t, h, filepath.Join(dir, "thrown.raw"))
				for range 2 {
					checkBack(t, h, addr)
					writeAttached(t, h, "new_")
				}
				for _, device := range []string{"nic1", "disk1", "disk2"} {
					h.does(t, "", "detach", "web", device)
				}
				if got := h.inGuest(t, "web", "ls /sys/block /sys/class/net | grep -e vd -e eth"); got != "eth0" {
					t.Errorf("the guest still has %q", got)
				}
				h.does(t, "", "snapshot", "rm", "web", "one")
				h.does(t, "web: ", "kill", "web")
				h.restored(t, before)
			})
		})
	}
}

// secondAddress is a script for the address of a guest's second card.
const secondAddress = "until ip -4 addr show eth1 2>/dev/null | sed -n 's/.*inet \\([0-9.]*\\).*/\\1/p' | grep .; do :; done"

// attachAll gives the guest two disks, a card and a CPU, and returns the card's
// address. A disk before them comes and goes: they are to stay at their places.
func attachAll(t *testing.T, h *host, dir string) (addr string) {
	t.Helper()
	for id, disk := range []string{"first.raw", "thrown.raw", "kept.raw"} {
		h.does(t, fmt.Sprintf("disk%d\n", id), "attach", "disk", "web", filepath.Join(dir, disk), "--format", "raw", fmt.Sprintf("--keep=%v", disk == "kept.raw"))
	}
	h.does(t, "nic1\n", "attach", "nic", "web", "host-only")
	h.does(t, "2 CPUs", "resize", "web", "--cpus", "2")
	addr = h.inGuest(t, "web", "until [ -e /dev/vdc ] && [ $(nproc) = 2 ]; do :; done; "+secondAddress)
	h.does(t, "", "detach", "web", "disk0")
	return addr
}

// writeAttached writes a word into the guest's memory and onto its disks.
func writeAttached(t *testing.T, h *host, word string) {
	t.Helper()
	h.inGuest(t, "web", "echo "+word+" >/tmp/word; for d in vdb vdc; do echo "+word+" >/dev/$d; done; sync")
}

// refusedWithout has a restore refused while a disk is gone: the guest goes on.
func refusedWithout(t *testing.T, h *host, disk string) {
	t.Helper()
	if err := os.Rename(disk, disk+".away"); err != nil {
		t.Fatal(err)
	}
	if code, out := h.vmrun(t, "snapshot", "restore", "web", "one"); code != 1 || !strings.Contains(out, disk) {
		t.Errorf("with a disk gone, restore ends with %d: %s", code, out)
	}
	if got := h.inGuest(t, "web", "cat /tmp/word"); got != "now_" {
		t.Errorf("a refused restore left %q", got)
	}
	if err := os.Rename(disk+".away", disk); err != nil {
		t.Fatal(err)
	}
}

// checkBack restores the guest, which has to have all that it had.
func checkBack(t *testing.T, h *host, addr string) {
	t.Helper()
	h.does(t, "web\n", "snapshot", "restore", "web", "one", "--wait", "agent")
	if got := h.inGuest(t, "web", "for f in /tmp/word /dev/vdb /dev/vdc; do head -n 1 $f; done; nproc"); got != "then\nthen\nthen\n2" {
		t.Errorf("the guest finds %q", got)
	}
	if got := h.inGuest(t, "web", secondAddress); got != addr {
		t.Errorf("its card has %s, and had %s", got, addr)
	}
	if err := reaches(t, h.Namespace, addr); err != nil {
		t.Errorf("the host does not reach the restored card: %v", err)
	}
}

// capture sees a guest's packets at its TAP, and in mode user, and chooses.
func TestCapture(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables", "tcpdump")...)
		h := newHost(t)
		newOutside(t, h, "10.70.0.0/24")
		before := h.state(t)
		dir := t.TempDir()
		profile := writeProfile(t, dir, "web", natLAN+micro(t, serveScript)+"\n[[nics]]\nnetwork = \"user\"\n")
		h.background(t, profile, "web")
		h.does(t, "serving", "wait", "web", "--for", "log=^serving$", "--timeout", "1m") // its agent answers before it has addresses
		for nic, ping := range map[string]string{"nic0": "ping -c 8 -I eth0 " + world.Gateway, "nic1": "ping -c 8 -I eth1 10.0.2.2"} {
			file := filepath.Join(dir, nic+".pcapng")
			listening := h.start(t, h.command(t, "capture", "web", nic, "-w", file, "-c", "4", "-f", "icmp"))
			pinging := h.start(t, h.command(t, "exec", "web", "--", "sh", "-c", ping))
			listening.ends(t, 0)
			if !strings.Contains(listening.output(), "packets captured: 4") {
				t.Errorf("%s: capture says %s", nic, listening.output())
			}
			pinging.exit(t)
			out, err := exec.Command("tcpdump", "-nn", "-r", file).Output()
			if n := len(regexp.MustCompile(`(?m)ICMP echo`).FindAll(out, -1)); err != nil || n != 4 {
				t.Errorf("%s: tcpdump finds %d, %v\n%s", nic, n, err, out)
			}
		}
		h.capturesInto(t, "tcpdump -nn -r -")
		h.does(t, "web: ", "kill", "web")
		h.restored(t, before)
	})
}

// capturesInto has a shell pipe one packet of the VM web's to a program.
func (h *host) capturesInto(t *testing.T, program string) {
	t.Helper()
	vmrun := h.command(t)
	piping := exec.Command("sh", "-c", `"$0" capture web -c 1 -f icmp | `+program, vmrun.Path)
	piping.Env, piping.WaitDelay = vmrun.Env, vmrun.WaitDelay
	listening := h.start(t, piping)
	pinging := h.start(t, h.command(t, "exec", "web", "--", "ping", "-c", "8", "-I", "eth0", world.Gateway))
	listening.ends(t, 0)
	pinging.exit(t)
	if n := len(regexp.MustCompile(`ICMP echo`).FindAllString(listening.console.String(), -1)); n != 1 {
		t.Errorf("%s shows %d packets:\n%s", program, n, listening.output())
	}
}
