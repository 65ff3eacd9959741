// Package debian has a real guest for tests: Debian with systemd,
// qemu-guest-agent and an SSH server, as scripts/debian-guest makes it.
package debian

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/vmrun/vmrun/integration/internal/feature"
)

// Guest names the files of a guest, which are shared by all tests: a profile
// uses the disk with keep = false. The guest's root has no password and is
// logged in on the serial console.
type Guest struct {
	Kernel string
	Initrd string
	Disk   string // raw, with an ext4 file system that the initrd mounts as /
	Key    string // private, of the guest's root for SSH
}

// Find returns the guest, and makes it first where that has not been done yet:
// that takes a minute, root, mmdebstrap and a Debian mirror, so it is to be
// called outside of a sandbox. Where the guest can't be made the test is skipped
// or fails, as for any feature; this one is "debian".
func Find(t *testing.T) Guest {
	t.Helper()
	g, err := Make()
	if err != nil {
		feature.Missing(t, "debian", err)
	}
	return g
}

// Make is Find for programs that are no tests.
func Make() (Guest, error) {
	_, here, _, _ := runtime.Caller(0)
	script := filepath.Join(filepath.Dir(here), "..", "..", "..", "scripts", "debian-guest")
	var told bytes.Buffer
	cmd := exec.Command(script)
	cmd.Stderr = &told
	out, err := cmd.Output()
	if err != nil {
		return Guest{}, fmt.Errorf("run scripts/debian-guest: %w: %s", err, strings.TrimSpace(told.String()))
	}
	dir := strings.TrimSpace(string(out))
	g := Guest{
		Kernel: filepath.Join(dir, "vmlinuz"), Initrd: filepath.Join(dir, "initrd.img"),
		Disk: filepath.Join(dir, "disk.img"), Key: filepath.Join(dir, "id_ed25519"),
	}
	for _, file := range []string{g.Kernel, g.Initrd, g.Disk, g.Key} {
		if _, err := os.Stat(file); err != nil {
			return Guest{}, err
		}
	}
	return g, nil
}

// Profile is the part of a profile that boots the guest; it begins with a table.
func (g Guest) Profile() string {
	return fmt.Sprintf(`[boot]
kernel = %q
initrd = %q
cmdline = "quiet"
[[disks]]
path = %q
format = "raw"
`, g.Kernel, g.Initrd, g.Disk)
}
