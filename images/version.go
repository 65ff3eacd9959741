package images

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// KernelVersion reads the version, as uname -r prints it, from a kernel for
// x86-64: a bzImage, or an uncompressed ELF file. It is "" for an ELF file that
// does not tell. A file that is no such kernel is an error, so that this also
// checks a kernel before QEMU is left to stumble over it.
func KernelVersion(path string) (string, error) {
	f, _, err := openImage(path, false)
	if err != nil {
		return "", fmt.Errorf("open kernel %q: %w", path, err)
	}
	defer f.Close()
	version, err := readVersion(f)
	if err != nil {
		return "", fmt.Errorf("read kernel %q: %w", path, err)
	}
	return version, nil
}

// readVersion tells what kind of kernel f is, and its version.
func readVersion(f *os.File) (string, error) {
	head, err := readHead(f, bootHeaderMax)
	if err != nil {
		return "", err
	}
	if !bytes.HasPrefix(head, []byte("\x7fELF")) {
		return parseBzImage(head)
	}
	const machine, amd64 = 18, 62 // e_machine, EM_X86_64
	if len(head) < machine+2 || binary.LittleEndian.Uint16(head[machine:]) != amd64 {
		return "", errors.New("not a kernel for x86-64")
	}
	return scanVersion(f)
}

// bootHeaderMax covers the setup code of a bzImage, which holds the version:
// at most 64 sectors behind the boot sector.
const bootHeaderMax = 65 * 512

// parseBzImage reads the version from the start of a bzImage. The layout is in
// the kernel's Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
func parseBzImage(b []byte) (string, error) {
	const (
		bootFlag      = 0x1fe // 0xAA55
		header        = 0x202 // "HdrS"
		protocol      = 0x206 // the version field came with 2.00
		kernelVersion = 0x20e // where the text is, less 0x200
	)
	le := binary.LittleEndian
	if len(b) < kernelVersion+2 || le.Uint16(b[bootFlag:]) != 0xaa55 || string(b[header:header+4]) != "HdrS" || le.Uint16(b[protocol:]) < 0x200 {
		return "", errors.New("not a Linux kernel")
	}
	offset := le.Uint16(b[kernelVersion:])
	start := int(offset) + 0x200
	if offset == 0 || start >= len(b) {
		return "", errors.New("no version in its header")
	}
	text, _, ok := bytes.Cut(b[start:], []byte{0})
	version, _, _ := strings.Cut(string(text), " ")
	if !ok || !plausibleVersion(version) {
		return "", errors.New("no version in its header")
	}
	return version, nil
}

// scanVersion looks for the banner "Linux version 6.1.0 (" of an uncompressed
// kernel.
func scanVersion(r io.Reader) (string, error) {
	const banner, longest = "Linux version ", 128
	buf := bufio.NewReaderSize(r, 1<<20)
	for {
		b, err := buf.Peek(buf.Size())
		if err != nil && !errors.Is(err, io.EOF) {
			return "", cause(err)
		}
		for i := bytes.Index(b, []byte(banner)); i >= 0; {
			text := b[i+len(banner):]
			word, _, ok := strings.Cut(string(text[:min(longest, len(text))]), " ")
			if ok && plausibleVersion(word) {
				return word, nil
			}
			next := bytes.Index(text, []byte(banner))
			if next < 0 {
				break
			}
			i += len(banner) + next
		}
		if err != nil {
			return "", nil
		}
		// The end of this piece may be the banner's first half.
		if _, err := buf.Discard(len(b) - len(banner) - longest); err != nil {
			return "", cause(err)
		}
	}
}

// plausibleVersion reports whether s starts with a digit and can be a folder's name.
func plausibleVersion(s string) bool {
	if s == "" || !isDigit(s[0]) {
		return false
	}
	for _, c := range []byte(s) {
		if c <= ' ' || c >= 0x7f || c == '/' {
			return false
		}
	}
	return true
}
