// Package guest makes a guest that owes nothing to vmrun: Debian's kernel, an
// initramfs of busybox and a script, and a disk that boots them by itself.
package guest

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmrun/vmrun/integration/internal/feature"
)

var (
	//go:embed init.sh
	initScript string
	//go:embed lease.sh
	leaseScript string
)

// Initrd writes the guest's initramfs into dir and returns its path. It needs
// the features kernel and busybox.
func Initrd(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "own-initrd")
	own := Initramfs{
		Init:    initScript,
		Scripts: map[string]string{"lease": leaseScript},
		Drivers: []string{"virtio_pci", "virtio_net", "8021q", "af_packet"},
	}
	if err := own.Write(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// Disk writes a qcow2 image into dir that boots the guest from its own boot
// loader, and returns its path; words are added to the kernel's command line.
// It needs the features of Initrd, syslinux, mkfs.fat, mtools and qemu-img.
func Disk(t *testing.T, dir string, words ...string) string {
	t.Helper()
	raw, image := filepath.Join(dir, "own.raw"), filepath.Join(dir, "own.qcow2")
	if err := writeDisk(raw, Initrd(t, dir), words); err != nil {
		t.Fatal(err)
	}
	if err := run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(raw); err != nil {
		t.Fatal(err)
	}
	return image
}

func writeDisk(raw, initrd string, words []string) error {
	kernel, err := feature.Kernel()
	if err != nil {
		return err
	}
	config := filepath.Join(filepath.Dir(raw), "syslinux.cfg")
	text := "default own\nlabel own\n kernel /vmlinuz\n append initrd=/initrd console=ttyS0 quiet no_timer_check " + strings.Join(words, " ") + "\n"
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write boot menu: %w", err)
	}
	file, err := os.Create(raw)
	if err != nil {
		return fmt.Errorf("make disk: %w", err)
	}
	if err := errors.Join(file.Truncate(64<<20), file.Close()); err != nil {
		return fmt.Errorf("make disk: %w", err)
	}
	for _, command := range [][]string{
		{"mkfs.fat", raw},
		{"syslinux", "--install", raw},
		{"mcopy", "-i", raw, config, "::syslinux.cfg"},
		{"mcopy", "-i", raw, kernel.Image, "::vmlinuz"},
		{"mcopy", "-i", raw, initrd, "::initrd"},
	} {
		if err := run(command[0], command[1:]...); err != nil {
			return err
		}
	}
	return nil
}

func run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("run %s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}
