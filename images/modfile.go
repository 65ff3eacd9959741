package images

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// unpackers are the compressions of modules, by what follows ".ko". The guest
// gets modules unpacked: the kernel needn't know the compression, and boots faster.
var unpackers = map[string]func(io.Reader) (io.Reader, error){
	".gz":  func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
	".xz":  func(r io.Reader) (io.Reader, error) { return xz.NewReader(r) },
	".zst": unpackZstd,
}

func unpackZstd(r io.Reader) (io.Reader, error) {
	d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	return d.IOReadCloser(), nil
}

// unpackedPath is a module's path once it is unpacked.
func unpackedPath(file string) string {
	dir, name := path.Split(file)
	name, _, _ = strings.Cut(name, ".ko")
	return dir + name + ".ko"
}

// readModule returns a module's content, unpacked.
func readModule(file string) ([]byte, error) {
	_, suffix, _ := strings.Cut(filepath.Base(file), ".ko")
	if suffix == "" {
		return os.ReadFile(file)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	unpack := unpackers[suffix]
	if unpack == nil {
		return nil, fmt.Errorf("unpack module %q: unknown compression", file)
	}
	r, err := unpack(f)
	if err != nil {
		return nil, fmt.Errorf("unpack module %q: %w", file, err)
	}
	if c, ok := r.(io.Closer); ok {
		defer c.Close()
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("unpack module %q: %w", file, err)
	}
	return data, nil
}

// readDepends reads a module's dependencies from the module itself.
func (t *moduleTree) readDepends(m module) ([]string, error) {
	file := filepath.Join(t.dir, m.path)
	data, err := readModule(file)
	if err != nil {
		return nil, err
	}
	depends, err := parseDepends(data)
	if err != nil {
		return nil, fmt.Errorf("read module %q: %w", file, err)
	}
	return depends, nil
}

// parseDepends finds the entry "depends=a,b" among the texts of a module's
// section .modinfo, each of which ends with a zero byte.
func parseDepends(data []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("no section .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for entry := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := strings.CutPrefix(string(entry), "depends="); ok && list != "" {
			names := strings.Split(list, ",")
			for i := range names {
				names[i] = moduleName(names[i])
			}
			return names, nil
		}
	}
	return nil, nil
}
