package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
)

const users = 100 // the group of Debian

// asNobody makes a call of vmrun by a user with nothing but groups.
func (h *host) asNobody(t *testing.T, groups []uint32, args ...string) *exec.Cmd {
	t.Helper()
	dir := mkdir(t, "/run/nobody")
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	cmd := h.command(t, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody, Groups: groups}}
	cmd.Env = append(cmd.Env, "HOME=/nonexistent", "VMRUN_RUNTIME_DIR="+dir+"/run", "VMRUN_STATE_DIR="+dir+"/state",
		"VMRUN_CACHE_DIR="+dir+"/cache", "VMRUN_ROOT_RUNTIME_DIR="+filepath.Join(h.dir, "run"))
	cmd.Dir = "/"
	return cmd
}

// Root opens a network to a group. A member's VM and root's, of two profiles,
// share it and know each other's names, through the death of the keeper; who is
// not in the group is told so.
func TestGroupShares(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "users", "tun", "iptables")...)
		h := newHost(t)
		newOutside(t, h, "10.70.0.0/24")
		dir := mkdir(t, "/run/profiles")
		networks := writeProfile(t, dir, "networks", "[networks.lan]\nmode = \"nat\"\nsubnet = \"10.70.0.0/24\"\n")
		before := h.state(t)
		if code, output := h.vmrun(t, "net", "up", networks, "--group", "users"); code != 0 {
			t.Fatalf("net up: code %d\n%s", code, output)
		}
		roots := h.run(t, writeProfile(t, dir, "roots", natLAN+micro(t, serveScript)))
		roots.expect(t, `serving\n`)
		profile := writeProfile(t, dir, "members", natLAN+micro(t, `echo "root's: $(fetch roots.vmrun.internal)"; read line
			echo "outside: $(fetch 192.0.2.1)"; read line`))

		stranger := h.start(t, h.asNobody(t, nil, "run", profile))
		stranger.tells(t, `use network lan: root runs it for group users, which you are not in`)
		stranger.tells(t, `hint: .*vmrun net up FILE --group GROUP`)
		stranger.ends(t, 3)

		member := h.start(t, h.asNobody(t, []uint32{users}, "run", profile))
		member.expect(t, `eth0 \S+ 10\.70\.0\.\d+/24 gw 10\.70\.0\.1`)
		member.expect(t, `root's: served\n`)
		code, shown := h.vmrun(t, "net", "inspect", networkID(t, h))
		for _, want := range []string{`(?m)^open to +group users$`, `(?m)^held by +process \d+ of root, \d+[sm] ago$`,
			`(?m)^members +0 +10\.70\.0\.\d+ +52:54:00:\S+ +vmt\S+ +nobody +\d+ +\d+[sm] ago +[\d.]+ (B|KiB) in \d+ packets`,
			`(?m)^roots +0 +10\.70\.0\.\d+ +52:54:00:\S+ +vmt\S+ +root `} {
			if code != 0 || !regexp.MustCompile(want).MatchString(shown) {
				t.Errorf("inspect: code %d, no match for %q in\n%s", code, want, shown)
			}
		}
		kill(t, syscall.SIGKILL, "keeper")
		member.say(t, "")
		member.expect(t, `outside: hello 192\.0\.2\.2\n`)
		code, output := h.vmrun(t, "net", "down", networkID(t, h))
		if code != 1 || !strings.Contains(output, "VMs are on it: members, roots") {
			t.Errorf("net down: code %d\n%s", code, output)
		}
		roots.say(t, "")
		roots.ends(t, 0)
		member.say(t, "")
		member.ends(t, 0)
		h.restored(t, before)
	})
}

// networkID is what the one network that there is goes by.
func networkID(t *testing.T, h *host) string {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(h.dir, "run/nets/*"))
	if err != nil || len(dirs) != 1 {
		t.Fatalf("networks %v, %v", dirs, err)
	}
	return filepath.Base(dirs[0])
}
