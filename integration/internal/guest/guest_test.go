package guest_test

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/guest"
)

// The disk boots by itself, and the guest has its network, in QEMU alone.
func TestDiskBoots(t *testing.T) {
	feature.Needs(t, "qemu", "qemu-img", "kernel", "busybox", "syslinux", "mkfs.fat", "mtools")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	disk := guest.Disk(t, t.TempDir())
	out, err := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg", "-m", "256", "-nodefaults", "-no-user-config",
		"-display", "none", "-serial", "stdio", "-drive", "if=virtio,format=qcow2,file="+disk,
		"-nic", "user,model=virtio-net-pci").CombinedOutput()
	for _, want := range []string{" 10.0.2.15/24 gw 10.0.2.2 dns 10.0.2.3", "own-guest: done"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the console lacks %q", want)
		}
	}
	if err != nil || t.Failed() {
		t.Errorf("%v\n%s", err, out)
	}
}
