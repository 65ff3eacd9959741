package integration

import (
	"os"
	"syscall"
	"testing"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
)

const nobody = 65534

// An ordinary user's guest reaches outward, and is reached by forwarded ports.
func TestUser(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "users")...)
		h := newHost(t)
		newOutside(t, h, "10.0.2.0/24")
		h.dir = mkdir(t, "/run/user")
		if err := os.Chown(h.dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
		before := h.state(t)
		cmd := h.command(t, "run", writeProfile(t, mkdir(t, "/run/profiles"), "mine", `
			[[nics]]
			network = "user"
			forward = ["8080:80"]
		`+micro(t, `echo "outside: $(fetch 192.0.2.1)"`+serveScript)))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		cmd.Env = append(cmd.Env, "HOME=/nonexistent", "VMRUN_CACHE_DIR="+h.dir+"/cache")
		cmd.Dir = "/"

		vm := h.start(t, cmd)
		vm.expect(t, `vmrun-guest: eth0 \S+ 10\.0\.2\.15/24 gw 10\.0\.2\.2 dns 10\.0\.2\.3\n`)
		vm.expect(t, `outside: hello 192\.0\.2\.2\n`)
		vm.expect(t, `serving\n`)
		if err := reaches(t, h.Namespace, "127.0.0.1:8080"); err != nil {
			t.Errorf("the forwarded port: %v", err)
		}
		if err := reaches(t, h.Namespace, "127.0.0.1:8081"); err == nil {
			t.Error("a port that is not forwarded answers")
		}
		vm.say(t, "")
		vm.ends(t, 0)
		h.restored(t, before)
	})
}

// For a network that takes privileges, an ordinary user is told so, and why.
func TestUserIsRefusedNAT(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "users")...)
		h := newHost(t)
		h.dir = mkdir(t, "/run/user")
		if err := os.Chown(h.dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
		before := h.state(t)
		cmd := h.command(t, "run", writeProfile(t, mkdir(t, "/run/profiles"), "mine", natLAN+micro(t, "true")))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		cmd.Env = append(cmd.Env, "VMRUN_CACHE_DIR="+h.dir+"/cache")
		cmd.Dir = "/"
		vm := h.start(t, cmd)
		vm.tells(t, `root`)
		vm.tells(t, `hint: `)
		vm.ends(t, 3)
		h.restored(t, before)
	})
}
