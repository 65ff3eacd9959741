package images

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"strings"
)

// Format is how a disk image is laid out in its file.
type Format string

const (
	FormatAuto  Format = "auto" // by the image's first bytes
	FormatQCOW2 Format = "qcow2"
	FormatRaw   Format = "raw"
)

// headerLen is how much of an image is read to understand it: QEMU keeps the
// header, its extensions and the backing image's name well within it.
const headerLen = 64 << 10

// qcow2Magic is at the start of every qcow2 image.
const qcow2Magic = "QFI\xfb"

// DetectFormat tells qcow2 from raw by an image's first bytes. Formats that are
// neither, and would give a guest nothing but garbage as raw disks, are errors
// that say what to do.
func DetectFormat(r io.ReaderAt) (Format, error) {
	head, err := readHead(r, 512)
	if err != nil {
		return "", err
	}
	if bytes.HasPrefix(head, []byte(qcow2Magic)) {
		return FormatQCOW2, nil
	}
	for _, m := range []struct {
		offset      int
		magic, what string
	}{
		{0, "KDMV", "a VMDK image: convert it with qemu-img convert -O qcow2"},
		{0, "# Disk DescriptorFile", "a VMDK image: convert it with qemu-img convert -O qcow2"},
		{64, "\x7f\x10\xda\xbe", "a VDI image: convert it with qemu-img convert -O qcow2"},
		{0, "vhdxfile", "a VHDX image: convert it with qemu-img convert -O qcow2"},
		{0, "conectix", "a VHD image: convert it with qemu-img convert -O qcow2"},
		{0, "\xfd7zXZ\x00", "compressed: unpack it with unxz"},
		{0, "\x1f\x8b", "compressed: unpack it with gunzip"},
		{0, "\x28\xb5\x2f\xfd", "compressed: unpack it with unzstd"},
	} {
		if len(head) > m.offset && bytes.HasPrefix(head[m.offset:], []byte(m.magic)) {
			return "", errors.New(m.what)
		}
	}
	return FormatRaw, nil
}

// readHead reads up to n bytes from the start; less where there are no more.
func readHead(r io.ReaderAt, n int) ([]byte, error) {
	b := make([]byte, n)
	n, err := r.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, cause(err)
	}
	return b[:n], nil
}

// image is what an image file's header says.
type image struct {
	size          int64  // bytes that a guest sees
	backing       string // the backing image, as written; "": none
	backingFormat Format // "" where the header doesn't tell
}

// The parts of a qcow2 header that matter here; QEMU's docs/interop/qcow2.txt.
const (
	qcow2V2HeaderLen   = 72
	qcow2V3HeaderLen   = 104
	qcow2ExternalData  = 1 << 2 // incompatible feature: the data is in another file
	qcow2BackingFormat = 0xe2792aca
)

// readQCOW2 reads the header of a qcow2 image.
func readQCOW2(r io.ReaderAt) (image, error) {
	head, err := readHead(r, headerLen)
	if err != nil {
		return image{}, err
	}
	return parseQCOW2(head)
}

// parseQCOW2 understands the first headerLen bytes of a qcow2 image.
func parseQCOW2(b []byte) (image, error) {
	be := binary.BigEndian
	if len(b) < qcow2V2HeaderLen || string(b[:4]) != qcow2Magic {
		return image{}, errors.New("read qcow2 header: cut short")
	}
	extensions := qcow2V2HeaderLen
	switch version := be.Uint32(b[4:]); {
	case version == 3 && len(b) >= qcow2V3HeaderLen:
		if be.Uint64(b[72:])&qcow2ExternalData != 0 {
			return image{}, errors.New("a qcow2 image with an external data file is not supported")
		}
		extensions = int(min(be.Uint32(b[100:]), headerLen))
	case version != 2:
		return image{}, fmt.Errorf("read qcow2 header: version %d", version)
	}
	if be.Uint32(b[32:]) != 0 {
		return image{}, errors.New("an encrypted qcow2 image is not supported")
	}
	size := be.Uint64(b[24:])
	if size > math.MaxInt64/2 {
		return image{}, fmt.Errorf("read qcow2 header: size of %d bytes", size)
	}
	im := image{size: int64(size)}
	offset, n := be.Uint64(b[8:]), uint64(be.Uint32(b[16:]))
	if offset == 0 {
		return im, nil
	}
	if n == 0 || offset > uint64(len(b)) || n > uint64(len(b))-offset {
		return image{}, errors.New("read qcow2 header: the backing image's name is outside")
	}
	im.backing = string(b[offset : offset+n])
	if uint64(extensions) < offset {
		im.backingFormat = parseBackingFormat(b[extensions:offset])
	}
	return im, nil
}

// parseBackingFormat finds the backing format among a header's extensions: type
// and length of 32 bits each, then the data, padded to 8 bytes.
func parseBackingFormat(b []byte) Format {
	be := binary.BigEndian
	for len(b) >= 8 {
		kind, n := be.Uint32(b), uint64(be.Uint32(b[4:]))
		b = b[8:]
		if kind == 0 || n > uint64(len(b)) {
			return ""
		}
		if kind == qcow2BackingFormat {
			return Format(b[:n])
		}
		b = b[min((n+7)&^7, uint64(len(b))):]
	}
	return ""
}

// backingLayer says what to open beneath the image at path.
func backingLayer(path string, im image) (Layer, error) {
	switch im.backingFormat {
	case FormatQCOW2, FormatRaw:
	case "":
		// Probing would let whoever wrote the backing image as a raw disk
		// choose the files that are opened.
		return Layer{}, fmt.Errorf("the format of its backing image %q is not in its header: add it with qemu-img rebase -u -F", im.backing)
	default:
		return Layer{}, fmt.Errorf("its backing image %q is of format %q: only qcow2 and raw are supported", im.backing, im.backingFormat)
	}
	name := strings.TrimPrefix(im.backing, "file:")
	if before, _, ok := strings.Cut(name, ":"); ok && !strings.Contains(before, "/") {
		return Layer{}, fmt.Errorf("its backing image %q is not a file", im.backing)
	}
	if !filepath.IsAbs(name) {
		name = filepath.Join(filepath.Dir(path), name)
	}
	return Layer{Path: name, Format: im.backingFormat, ReadOnly: true}, nil
}
