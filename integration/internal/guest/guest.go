// Package guest makes a guest that owes nothing to vmrun: Debian's kernel, an
// initramfs of busybox and a script, and a disk that boots them by itself.
package guest

import (
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cavaliergopher/cpio"

	"github.com/vmrun/vmrun/integration/internal/feature"
)

var (
	//go:embed init.sh
	initScript string
	//go:embed lease.sh
	leaseScript string
)

// drivers are the modules that the guest loads, after what these need.
var drivers = []string{"virtio_pci", "virtio_net", "8021q", "af_packet"}

// Initrd writes the guest's initramfs into dir and returns its path. It needs
// the features kernel and busybox.
func Initrd(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "own-initrd")
	if err := writeInitrd(path); err != nil {
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

func writeInitrd(path string) error {
	kernel, err := feature.Kernel()
	if err != nil {
		return err
	}
	shell, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	file, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("write initramfs: %w", err)
	}
	defer file.Close()
	archive := cpio.NewWriter(file)
	a := &builder{w: archive}
	for _, dir := range []string{"bin", "dev", "etc", "modules", "proc", "sys"} {
		a.add(dir, cpio.TypeDir|0o755, "")
	}
	a.add("init", cpio.TypeReg|0o755, initScript)
	a.add("lease", cpio.TypeReg|0o755, leaseScript)
	a.copy("bin/busybox", shell)
	a.modules(kernel)
	if err := errors.Join(a.err, archive.Close(), file.Close()); err != nil {
		return fmt.Errorf("write initramfs: %w", err)
	}
	return nil
}

// builder writes an archive up to the first error, which it keeps.
type builder struct {
	w   *cpio.Writer
	err error
}

func (b *builder) add(name string, mode cpio.FileMode, text string) {
	if b.err != nil {
		return
	}
	if b.err = b.w.WriteHeader(&cpio.Header{Name: name, Mode: mode, Size: int64(len(text)), Links: 1}); b.err == nil {
		_, b.err = io.WriteString(b.w, text)
	}
}

func (b *builder) copy(name, source string) {
	text, err := os.ReadFile(source)
	b.err = errors.Join(b.err, err)
	b.add(name, cpio.TypeReg|0o755, string(text))
}

// modules adds the drivers and, before each, what it depends on.
func (b *builder) modules(kernel feature.GuestKernel) {
	text, err := os.ReadFile(filepath.Join(kernel.Modules, "modules.dep"))
	if err != nil {
		b.err = errors.Join(b.err, err)
		return
	}
	var order []string
	for _, driver := range drivers {
		for line := range strings.Lines(string(text)) {
			file, needs, ok := strings.Cut(strings.TrimSpace(line), ":")
			if !ok || filepath.Base(file) != driver+".ko" {
				continue
			}
			// The line names the last needed first.
			paths := append([]string{file}, strings.Fields(needs)...)
			slices.Reverse(paths)
			for _, path := range paths {
				if name := filepath.Base(path); !slices.Contains(order, name) {
					order = append(order, name)
					b.copy("modules/"+name, filepath.Join(kernel.Modules, path))
				}
			}
		}
	}
	b.add("modules/order", cpio.TypeReg|0o644, strings.Join(order, "\n")+"\n")
}
