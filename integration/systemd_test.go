package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/vmrun/vmrun/integration/internal/debian"
	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
	"github.com/vmrun/vmrun/integration/internal/world"
)

// systemdHost is a host of vmrun's that systemd runs: a Debian guest, in which
// vmrun is installed as docs/systemd.md has it, with machines for profiles that
// need no emulation: see internal/quickqemu.
type systemdHost struct {
	h *host
}

// TestSystemd holds what docs/systemd.md says of the unit that it shows, under a
// systemd that is process 1, with a network of the kernel's that runs there.
func TestSystemd(t *testing.T) {
	guest := debian.Find(t)
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, "qemu", "qemu-img")
		h := newHost(t)
		world.ServeHTTP(t, h.Namespace, "127.0.0.1:8000") // the Debian guest's outside
		before := h.state(t)
		s := bootSystemd(t, h, guest)
		state := s.state(t)

		s.starts(t)
		s.placed(t)
		s.stops(t)
		s.comesBack(t)
		s.failsUnready(t)
		s.says(t, "what systemd tells", `journalctl -b -o cat _PID=1 | grep -E '^vm-.*(Deactivated|Failed with|exited|SIGKILL|not our)'`, endings...)
		same(t, state, s.state(t))
		h.does(t, "", "kill", "debian")
		h.restored(t, before)
	})
}

// endings are what systemd has to tell of the service: it knows each end of the
// supervisor's, and kills nobody.
var endings = []string{
	"vm-web.service: Deactivated successfully.",
	"vm-signal.service: Main process exited, code=exited, status=4/NOPERMISSION",
	"vm-signal.service: Failed with result 'exit-code'.", // QEMU was killed
	"vm-signal.service: Deactivated successfully.",
	"vm-unready.service: Main process exited, code=exited, status=124/n/a",
	"vm-unready.service: Failed with result 'exit-code'.",
}

// bootSystemd boots the host and installs vmrun and the document's unit.
func bootSystemd(t *testing.T, h *host, guest debian.Guest) *systemdHost {
	t.Helper()
	dir := t.TempDir()
	profile := writeProfile(t, dir, "debian", guest.Profile()+fmt.Sprintf(
		"[[disks]]\npath = %q\nformat = \"raw\"\n[[nics]]\nnetwork = \"user\"\n", installation(t, dir)))
	h.background(t, profile, "debian")
	s := &systemdHost{h}
	s.sh(t, `mount -o ro /dev/vdb /mnt && cp -r /mnt/etc/. /etc && mount --bind /mnt/usr/local/bin /usr/local/bin`)
	t.Cleanup(func() {
		if t.Failed() {
			_, out, _ := h.exec(t, nil, "debian", "--", "sh", "-c", `journalctl -b -o short-precise -u 'vm-*'; cat /run/vmrun/*/*/*.log`)
			t.Logf("%s", out)
		}
	})
	return s
}

// installation is a disk with the files that are to be in the host.
func installation(t *testing.T, dir string) string {
	t.Helper()
	root, disk := filepath.Join(dir, "root"), filepath.Join(dir, "install.img")
	const profile = "[machine]\naccel = \"tcg\"\nuser = \"nobody\"\n" +
		"[[nics]]\nnetwork = \"lan\"\nip = %q\n[networks.lan]\nmode = \"nat\"\nsubnet = \"10.70.0.0/24\"\n"
	unit := documentedUnit(t)
	for name, text := range map[string]string{
		"etc/systemd/system/vm-web.service":     unit,
		"etc/systemd/system/vm-signal.service":  regexp.MustCompile(`ExecStop=.*`).ReplaceAllString(unit, "SuccessExitStatus=143"),
		"etc/systemd/system/vm-unready.service": strings.Replace(unit, "--wait-timeout 2m", "--wait-timeout 1s", 1),
		"etc/vmrun/web.toml":                    fmt.Sprintf(profile, "10.70.0.10"),
		"etc/vmrun/other.toml":                  fmt.Sprintf(profile, "10.70.0.11"),
	} {
		mkdir(t, filepath.Dir(filepath.Join(root, name)))
		write(t, filepath.Join(root, name), text)
	}
	bin := mkdir(t, filepath.Join(root, "usr/local/bin"))
	build := exec.Command("go", "build", "-o", filepath.Join(bin, "qemu-system-x86_64"), "./internal/quickqemu")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	for _, cmd := range []*exec.Cmd{
		build,
		exec.Command("cp", os.Getenv(binaryVariable), filepath.Join(bin, "vmrun")),
		exec.Command("mkfs.ext4", "-q", "-d", root, disk, "128M"),
	} {
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", cmd.Args, err, out)
		}
	}
	return disk
}

// documentedUnit is the unit that docs/systemd.md shows.
func documentedUnit(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile("../docs/systemd.md")
	if err != nil {
		t.Fatal(err)
	}
	const file = "`/etc/systemd/system/vm-web.service`:\n\n```ini\n"
	_, unit, found := strings.Cut(string(page), file)
	unit, _, closed := strings.Cut(unit, "```\n")
	if !found || !closed {
		t.Fatal("docs/systemd.md shows no vm-web.service")
	}
	return unit
}

// sh runs a script on the host, which has to succeed, and returns what it says.
func (s *systemdHost) sh(t *testing.T, script string) string {
	t.Helper()
	code, out, errs := s.h.execWithin(t, debianPatience, nil, "debian", "--", "bash", "-c", script)
	if code != 0 {
		t.Fatalf("%s ends with %d:\n%s%s", script, code, out, errs)
	}
	return out
}

// says fails the test unless a script says just the wanted lines.
func (s *systemdHost) says(t *testing.T, what, script string, want ...string) {
	t.Helper()
	if got := strings.Split(strings.TrimSpace(s.sh(t, script)), "\n"); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// state is what the host looks like, as far as vmrun may change it.
func (s *systemdHost) state(t *testing.T) string {
	t.Helper()
	return s.sh(t, `
		ip -d -o link show | sed 's/^[0-9]*: //'; ip -4 -o address show | sed 's/^[0-9]*: //; s/valid_lft.*//'
		ip -4 route show table all; ip rule; bridge fdb; nft -s list ruleset
		grep -H . /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/*/forwarding
		systemctl list-units --all --plain --no-legend 'run-*.scope'
		readlink /proc/[0-9]*/exe | grep -E '/(vmrun|qemu-system)'; find /run/vmrun /var/lib/vmrun -type s 2>/dev/null; true`)
}

// fetch is a script that gets a path from a machine.
func fetch(address, path string) string {
	return fmt.Sprintf(`exec 9<>/dev/tcp/%s/80; printf 'GET %s HTTP/1.0\r\n\r\n' >&9; tail -n 1 <&9; exec 9>&-; `, address, path)
}

// The machine is at its gate while somebody can open it for writing.
const (
	atGate   = `exec 8>/run/web.gate; `
	openGate = `exec 8>&-; `
)

// starts shows that the service is up when the machine answers, and not before.
func (s *systemdHost) starts(t *testing.T) {
	t.Helper()
	s.says(t, "start", `mkfifo /run/web.gate; systemctl start --no-block vm-web; `+atGate+
		`systemctl is-active vm-web; `+openGate+`systemctl start vm-web; systemctl is-active vm-web; `+
		fetch("10.70.0.10", "/")+fetch("10.70.0.10", "/fetch?http://10.0.2.2:8000/"),
		"activating", "active", "web", "hello 127.0.0.1")
	s.says(t, "main process", `tr '\0' ' ' </proc/$(systemctl show -P MainPID vm-web)/cmdline`, "/usr/local/bin/vmrun supervisor web")
}

// What systemd-cgls shows: a group's name, and below it its processes.
var (
	groupName   = regexp.MustCompile(`([\w@.-]+\.(?:service|scope))`)
	groupMember = regexp.MustCompile(`\d+ /usr/local/bin/.*?(keeper|supervisor \w+|guest=\w+)`)
)

// placed shows what belongs to the service and what does not.
func (s *systemdHost) placed(t *testing.T) {
	t.Helper()
	s.sh(t, `vmrun run -d --wait port=80 /etc/vmrun/other.toml`)
	groups, group := map[string]string{}, ""
	for line := range strings.Lines(s.sh(t, `systemd-cgls --no-pager --full /system.slice`)) {
		if m := groupMember.FindStringSubmatch(line); m != nil {
			groups[m[1]] = group
		} else if m := groupName.FindStringSubmatch(line); m != nil {
			group = m[1]
		}
	}
	scope, service := regexp.MustCompile(`^run-\w+\.scope$`), regexp.MustCompile(`^vm-web\.service$`)
	for process, in := range map[string]*regexp.Regexp{
		"supervisor web":   service,
		"guest=web":        service,
		"keeper":           scope,
		"supervisor other": scope,
		"guest=other":      scope,
	} {
		if !in.MatchString(groups[process]) {
			t.Errorf("%s is in the group %q, want %v; all are %v", process, groups[process], in, groups)
		}
	}
	if groups["keeper"] == groups["supervisor other"] {
		t.Errorf("the keeper is in the scope of a machine: %v", groups)
	}
}

// stops shows that the service ends in order and by itself: the network that came
// up with it stays for others.
func (s *systemdHost) stops(t *testing.T) {
	t.Helper()
	s.says(t, "stop", `systemctl stop vm-web; systemctl is-active vm-web
		journalctl -b -o cat -u vm-web | grep -o 'the guest powered off' | sort -u
		vmrun ps --json | grep -o '"name": *"[a-z]*"'; `+
		fetch("10.70.0.11", "/")+fetch("10.70.0.11", "/fetch?http://10.0.2.2:8000/"),
		"inactive", "the guest powered off", `"name": "other"`, "other", "hello 127.0.0.1")
	s.sh(t, `vmrun stop other`)
}

// comesBack shows that a machine which dies is started again, and that a unit
// without ExecStop ends in the same order.
func (s *systemdHost) comesBack(t *testing.T) {
	t.Helper()
	s.says(t, "a death, and SIGTERM", `systemctl start --no-block vm-signal; `+atGate+openGate+`systemctl start vm-signal
		for p in /proc/[0-9]*; do
			read -r -d '' program <$p/cmdline; [ "$program" = /usr/local/bin/qemu-system-x86_64 ] && kill -9 ${p#/proc/}
		done 2>/dev/null
		`+atGate+openGate+`systemctl start vm-signal; systemctl is-active vm-signal; systemctl show -P NRestarts vm-signal; `+
		fetch("10.70.0.10", "/")+`systemctl stop vm-signal; tail -n 1 /run/vmrun/vms/web/qemu.log`,
		"active", "1", "web", "powered off")
}

// failsUnready shows that a service whose machine is not ready in time has failed.
func (s *systemdHost) failsUnready(t *testing.T) {
	t.Helper()
	s.says(t, "a machine that does not answer", `systemctl start vm-unready; echo $?; systemctl is-active vm-unready; true`, "1", "failed")
}
