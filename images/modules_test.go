package images

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// modulesDep has a circle, an empty line, a module in need of one that isn't
// there, and one in need of one that is built in.
const modulesDep = `kernel/net/core/failover.ko:
kernel/drivers/net/net_failover.ko.xz: kernel/net/core/failover.ko

kernel/drivers/net/virtio_net.ko: kernel/drivers/net/net_failover.ko.xz kernel/net/core/failover.ko kernel/virtio/virtio-ring.ko
kernel/virtio/virtio-ring.ko:
kernel/a.ko: kernel/b.ko
kernel/b.ko: kernel/a.ko
kernel/torn.ko: kernel/gone.ko
kernel/ext4.ko: kernel/crc16.ko
`

// modulesFolder makes a modules folder of files with their contents.
func modulesFolder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// order resolves names and returns the modules' names in load order.
func order(t *testing.T, dir string, names ...string) (ordered, missing []string, err error) {
	t.Helper()
	tree, err := loadModuleTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	modules, missing, err := tree.resolve(names)
	for _, m := range modules {
		ordered = append(ordered, moduleName(m.path))
	}
	return ordered, missing, err
}

func TestResolveModules(t *testing.T) {
	dir := modulesFolder(t, map[string]string{"modules.dep": modulesDep, "modules.builtin": "kernel/crc16.ko\nkernel/net/af_packet.ko\n"})
	for _, tt := range []struct {
		names, ordered, missing, err string
	}{
		{names: "virtio_net", ordered: "failover net_failover virtio_ring virtio_net"},
		{names: "failover virtio_net failover", ordered: "failover net_failover virtio_ring virtio_net"},
		{names: "a", ordered: "b a"},
		{names: "af_packet nothing ext4", ordered: "ext4", missing: "nothing"},
		{names: "torn", err: "module torn needs gone"},
	} {
		ordered, missing, err := order(t, dir, strings.Fields(tt.names)...)
		if tt.err != "" {
			wantError(t, err, tt.err)
			continue
		}
		if err != nil || strings.Join(ordered, " ") != tt.ordered || strings.Join(missing, " ") != tt.missing {
			t.Errorf("resolve %s: %v, missing %v, %v", tt.names, ordered, missing, err)
		}
	}
}

// The folder of a package that was unpacked, but whose modules.dep was never made.
func TestResolveWithoutDepmod(t *testing.T) {
	dir := modulesFolder(t, map[string]string{
		"modules.order":     "",
		"kernel/a-b.ko":     moduleFile(t, "depends=c,d-e"),
		"kernel/x/c.ko.gz":  gzipped(t, moduleFile(t, "license=GPL", "depends=")),
		"kernel/d-e.ko.zst": zstdText(t, moduleFile(t, "depends=c")),
		"kernel/f.ko.sig":   "not a module",
	})
	ordered, missing, err := order(t, dir, "a_b", "f")
	if err != nil || strings.Join(ordered, " ") != "c d_e a_b" || !slices.Equal(missing, []string{"f"}) {
		t.Errorf("%v, missing %v, %v", ordered, missing, err)
	}
}

// moduleFile makes an ELF file whose section .modinfo has the given entries.
func moduleFile(t *testing.T, entries ...string) string {
	t.Helper()
	names := "\x00.modinfo\x00.shstrtab\x00"
	info := strings.Join(entries, "\x00") + "\x00"
	const headers = 64 + 3*64
	sections := []elf.Section64{
		{},
		{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: headers, Size: uint64(len(info))},
		{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: uint64(headers + len(info)), Size: uint64(len(names))},
	}
	return elfFile(t, elf.Header64{Shoff: 64, Shentsize: 64, Shnum: 3, Shstrndx: 2}, sections) + info + names
}

// elfFile makes an ELF file for x86-64 of a header and what follows it.
func elfFile(t *testing.T, h elf.Header64, rest any) string {
	t.Helper()
	copy(h.Ident[:], "\x7fELF\x02\x01\x01")
	h.Machine, h.Version, h.Ehsize = uint16(elf.EM_X86_64), 1, 64
	var b bytes.Buffer
	for _, v := range []any{h, rest} {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

func gzipped(t *testing.T, text string) string {
	var b bytes.Buffer
	return packed(t, &b, gzip.NewWriter(&b), text)
}

func zstdText(t *testing.T, text string) string {
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	return packed(t, &b, w, text)
}

func xzText(t *testing.T, text string) string {
	var b bytes.Buffer
	w, err := xz.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	return packed(t, &b, w, text)
}

// packed writes text through w, which writes to b.
func packed(t *testing.T, b *bytes.Buffer, w io.WriteCloser, text string) string {
	t.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestReadModule(t *testing.T) {
	dir := modulesFolder(t, map[string]string{
		"a.ko": "plain", "b.ko.gz": gzipped(t, "gzip"), "c.ko.xz": xzText(t, "xz"), "d.ko.zst": zstdText(t, "zstd"), "e.ko.xz": "torn",
	})
	for file, want := range map[string]string{"a.ko": "plain", "b.ko.gz": "gzip", "c.ko.xz": "xz", "d.ko.zst": "zstd"} {
		if got, err := readModule(filepath.Join(dir, file)); string(got) != want || err != nil {
			t.Errorf("%s: %q, %v", file, got, err)
		}
	}
	_, err := readModule(filepath.Join(dir, "e.ko.xz"))
	wantError(t, err, "unpack module")
}

func FuzzParseModulesDep(f *testing.F) {
	f.Add(modulesDep)
	f.Add("../a.ko:")
	f.Add("/a.ko:\nb")
	f.Fuzz(func(t *testing.T, text string) {
		modules, err := parseModulesDep(strings.NewReader(text))
		if err != nil {
			return
		}
		tree := &moduleTree{modules: modules}
		var names []string
		for name, m := range modules {
			if !filepath.IsLocal(m.path) {
				t.Errorf("module %q is outside of the folder", m.path)
			}
			names = append(names, name)
		}
		if ordered, _, err := tree.resolve(names); err == nil && len(ordered) != len(modules) {
			t.Errorf("%d of %d modules in order", len(ordered), len(modules))
		}
	})
}

func FuzzParseDepends(f *testing.F) {
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if names, err := parseDepends(b); err != nil && names != nil {
			t.Errorf("%v and %v", names, err)
		}
	})
}
