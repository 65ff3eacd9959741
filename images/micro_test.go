package images

import (
	"bytes"
	"debug/elf"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/vmrun/vmrun/images/guest"
)

// microSpec is a micro guest of made-up parts.
func microSpec(t *testing.T) MicroSpec {
	t.Helper()
	dir := modulesFolder(t, map[string]string{
		"init":                            elfFile(t, elf.Header64{}, []byte("init")),
		"boot/vmlinuz":                    string(bzImage("6.1.0 x")),
		"lib/modules/6.1.0/modules.order": "",
		"lib/modules/6.1.0/modules.dep":   "kernel/virtio_net.ko.xz: kernel/failover.ko\nkernel/failover.ko:\n",
		"lib/modules/6.1.0/kernel/virtio_net.ko.xz":       xzText(t, "the driver"),
		"lib/modules/6.1.0/kernel/failover.ko":            "what it needs",
		"lib/modules/6.1.0/kernel/nobody/asked/for.ko.xz": "torn",
	})
	return MicroSpec{
		Kernel:  filepath.Join(dir, "boot/vmlinuz"),
		Init:    filepath.Join(dir, "init"),
		Command: []string{"sh", "-c", "echo \"a, b\"\n"},
	}
}

func prepareMicro(t *testing.T, spec MicroSpec, cacheDir string) (path string, content []byte) {
	t.Helper()
	path, err := PrepareMicro(t.Context(), spec, cacheDir)
	if err != nil {
		t.Fatal(err)
	}
	content, err = os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return path, content
}

func TestMicroArchive(t *testing.T) {
	spec := microSpec(t)
	_, content := prepareMicro(t, spec, t.TempDir())
	archive, err := cpio.ArchiveFromReader(cpio.Newc.Reader(bytes.NewReader(content)))
	if err != nil {
		t.Fatal(err)
	}
	if r, ok := archive.Get("dev/console"); !ok || r.Mode != cpio.S_IFCHR|0o600 || r.Rmajor != 5 || r.Rminor != 1 {
		t.Errorf("console: %v", r)
	}
	if r, ok := archive.Get("init"); !ok || r.Mode != cpio.S_IFREG|0o755 {
		t.Errorf("init: %v", r)
	}
	if r, ok := archive.Get("lib/modules/6.1.0/kernel/virtio_net.ko"); !ok || r.FileSize != uint64(len("the driver")) {
		t.Errorf("module: %v", r)
	}
	for i, name := range archive.Order {
		if dir := filepath.Dir(name); dir != "." && !slices.Contains(archive.Order[:i], dir) {
			t.Errorf("%s comes before its folder", name)
		}
	}
	r, _ := archive.Get(guest.ConfigPath)
	text := make([]byte, r.FileSize)
	if _, err := r.ReadAt(text, 0); err != nil {
		t.Fatal(err)
	}
	var config guest.Config
	if err := json.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	if want := []string{"/lib/modules/6.1.0/kernel/failover.ko", "/lib/modules/6.1.0/kernel/virtio_net.ko"}; !slices.Equal(config.Modules, want) {
		t.Errorf("modules %v, want %v", config.Modules, want)
	}
	if !slices.Equal(config.Command, spec.Command) || config.Shell != "" || !slices.Contains(config.Missing, "virtio_pci") {
		t.Errorf("configuration %+v", config)
	}
}

func TestMicroDeterminism(t *testing.T) {
	spec := microSpec(t)
	_, a := prepareMicro(t, spec, t.TempDir())
	_, b := prepareMicro(t, spec, t.TempDir())
	if !bytes.Equal(a, b) {
		t.Error("two archives of the same parts differ")
	}
}

func TestMicroCache(t *testing.T) {
	spec, dir := microSpec(t), filepath.Join(t.TempDir(), "new", "cache")
	path, content := prepareMicro(t, spec, dir)
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	prepareMicro(t, spec, dir)
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("not used again: %v", err)
	}
	for name, spoil := range map[string]func() error{
		"truncated": func() error { return os.Truncate(path, int64(len(content)-600)) },
		"emptied":   func() error { return os.Truncate(path, 0) },
		"foreign":   func() error { return os.Chmod(path, 0o666) },
		"link": func() error {
			return errors.Join(os.Rename(path, path+"2"), os.Symlink(path+"2", path))
		},
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if _, got := prepareMicro(t, spec, dir); !bytes.Equal(got, content) {
			t.Errorf("%s: not made anew", name)
		}
		if fi, err := os.Lstat(path); err != nil || fi.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", name, fi.Mode(), err)
		}
	}
}

// Every part is in the digest: an archive of old parts is never used for new ones.
func TestMicroCacheMisses(t *testing.T) {
	spec, dir := microSpec(t), t.TempDir()
	paths := map[string]bool{}
	prepare := func(what string) {
		t.Helper()
		path, _ := prepareMicro(t, spec, dir)
		if paths[path] {
			t.Errorf("%s: an old archive was used", what)
		}
		paths[path] = true
	}
	prepare("first")
	spec.Command = append(spec.Command, "x")
	prepare("command")
	spec.LeaseTimeout = time.Second
	prepare("timeout")
	// The same size, as when a program is built again.
	fi, err := os.Stat(spec.Init)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(spec.Init, []byte(elfFile(t, elf.Header64{}, []byte("tini"))), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(spec.Init, fi.ModTime(), fi.ModTime()); err != nil {
		t.Fatal(err)
	}
	prepare("init")
	module := filepath.Join(filepath.Dir(spec.Init), "lib/modules/6.1.0/kernel/failover.ko")
	if err := os.WriteFile(module, []byte("WHAT IT NEEDS"), 0o600); err != nil {
		t.Fatal(err)
	}
	prepare("module")
}

func TestMicroConcurrency(t *testing.T) {
	spec, dir := microSpec(t), t.TempDir()
	var wg sync.WaitGroup
	paths := make([]string, 20)
	for i := range paths {
		wg.Go(func() {
			var err error
			if paths[i], err = PrepareMicro(t.Context(), spec, dir); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if unlike := slices.Compact(paths); len(unlike) != 1 {
		t.Errorf("paths %v", unlike)
	}
	if left, _ := os.ReadDir(dir); len(left) != 2 {
		t.Errorf("in the cache: %v", left)
	}
}

func TestMicroErrors(t *testing.T) {
	good := microSpec(t)
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	dynamic := filepath.Join(t.TempDir(), "dynamic")
	program := elfFile(t, elf.Header64{Phoff: 64, Phentsize: 56, Phnum: 1}, elf.Prog64{Type: uint32(elf.PT_INTERP)})
	if err := os.WriteFile(dynamic, []byte(program), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		change func(s *MicroSpec)
		want   string
	}{
		{func(s *MicroSpec) { s.Kernel = script }, "not a Linux kernel"},
		{func(s *MicroSpec) { s.Init = "/gone" }, `open program "/gone": no such file or directory`},
		{func(s *MicroSpec) { s.Init = script }, "read program"},
		{func(s *MicroSpec) { s.Busybox = dynamic }, "not statically linked"},
		{func(s *MicroSpec) { s.Busybox = s.Init }, "list applets"},
		{func(s *MicroSpec) { s.ModulesDir = "/gone" }, `read modules of "/gone"`},
	} {
		spec, dir := good, t.TempDir()
		tt.change(&spec)
		_, err := PrepareMicro(t.Context(), spec, dir)
		wantError(t, err, tt.want)
		left, _ := filepath.Glob(filepath.Join(dir, "*micro-*"))
		if len(left) > 0 {
			t.Errorf("%s: left in the cache: %v", tt.want, left)
		}
	}
}

func TestSweepMicro(t *testing.T) {
	spec, dir := microSpec(t), t.TempDir()
	old, _ := prepareMicro(t, spec, dir)
	past := time.Now().Add(-time.Hour)
	torn := filepath.Join(dir, cacheTemp+"1")
	stranger := filepath.Join(dir, "micro-brewery")
	for _, path := range []string{torn, stranger, old} {
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, past, past); err != nil {
			t.Fatal(err)
		}
	}
	spec.Command = nil
	used, _ := prepareMicro(t, spec, dir)
	removed, err := SweepMicro(dir, past.Add(time.Minute))
	if want := []string{old, torn}; err != nil || !slices.Equal(removed, want) {
		t.Errorf("removed %v, %v, want %v", removed, err, want)
	}
	for _, path := range []string{used, stranger} {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
	if _, err := SweepMicro(filepath.Join(dir, "gone"), past); err != nil {
		t.Error(err)
	}
}

func TestSealIsNearTheEnd(t *testing.T) {
	_, content := prepareMicro(t, microSpec(t), t.TempDir())
	if i := strings.LastIndex(string(content), sealPath[1:]); len(content)-i > sealTail {
		t.Errorf("%d bytes from the end", len(content)-i)
	}
}
