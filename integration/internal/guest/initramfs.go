package guest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cavaliergopher/cpio"

	"github.com/vmrun/vmrun/integration/internal/feature"
)

// Initramfs is an archive that the guests' kernel, see feature.Kernel, starts from.
type Initramfs struct {
	Init    string            // a script for /bin/busybox, which is there
	Scripts map[string]string // further ones, by name, in the root folder
	Drivers []string          // the modules that /modules has, in the order of /modules/order, after what these need
}

// Write makes the archive a file. It needs the features kernel and busybox.
func (i Initramfs) Write(path string) error {
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
	for _, dir := range []string{"bin", "dev", "etc", "modules", "proc", "root", "sys"} {
		a.add(dir, cpio.TypeDir|0o755, "")
	}
	a.add("init", cpio.TypeReg|0o755, i.Init)
	for name, text := range i.Scripts {
		a.add(name, cpio.TypeReg|0o755, text)
	}
	a.copy("bin/busybox", shell)
	a.modules(kernel, i.Drivers)
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
func (b *builder) modules(kernel feature.GuestKernel, drivers []string) {
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
