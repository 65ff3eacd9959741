package images

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCompareVersions(t *testing.T) {
	// Each is newer than the one before.
	versions := []string{
		"0-rescue-d41d8cd98f", "5.10.0-30-amd64", "6.1.0-9-amd64", "6.1.0-10-amd64", "6.1.0-10-cloud-amd64",
		"6.9", "6.10-rc2", "6.10-rc10", "6.10", "6.10-1", "6.10.1", "6.10.00000000000000000000000000000000000000002", "10",
	}
	for i, a := range versions {
		for j, b := range versions {
			got := compareVersions(a, b)
			if i < j && got >= 0 || i == j && got != 0 || i > j && got <= 0 {
				t.Errorf("compareVersions(%q, %q) = %d", a, b, got)
			}
		}
	}
}

func TestFindKernel(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	for _, path := range []string{a + "/vmlinuz-6.1.0-9", b + "/vmlinuz-6.1.0-10", a + "/vmlinuz", a + "/initrd.img-7", a + "/vmlinuz-"} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Mkdir(a+"/vmlinuz-8", 0o700), os.Symlink("gone", a+"/vmlinuz-9")); err != nil {
		t.Fatal(err)
	}
	got, err := FindKernel("/no/such/folder", a, b)
	if want := b + "/vmlinuz-6.1.0-10"; got != want || err != nil {
		t.Errorf("FindKernel = %q, %v, want %q", got, err, want)
	}
	_, err = FindKernel("/no/such/folder")
	missing, ok := errors.AsType[*NoKernelError](err)
	if !ok || missing.Dirs[0] != "/no/such/folder" || !strings.Contains(err.Error(), KernelPackage) {
		t.Errorf("error %v", err)
	}
}

// bzImage makes the start of a kernel file.
func bzImage(version string) []byte {
	b := make([]byte, 4096)
	binary.LittleEndian.PutUint16(b[0x1fe:], 0xaa55)
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x206:], 0x20f)
	binary.LittleEndian.PutUint16(b[0x20e:], 0x800)
	copy(b[0xa00:], version)
	return b
}

func TestKernelVersion(t *testing.T) {
	elf := "\x7fELF\x02\x01" + strings.Repeat("\x00", 12) + "\x3e\x00"
	long := strings.Repeat("x", 1<<20-7-len(elf)) // the banner straddles two reads
	for _, tt := range []struct {
		name, content, want, err string
	}{
		{"bzImage", string(bzImage("6.1.0-56-cloud-amd64 (debian-kernel@lists) #1 SMP")), "6.1.0-56-cloud-amd64", ""},
		{"bzImage without", string(bzImage("")), "", "no version in its header"},
		{"bzImage with a path", string(bzImage("6/../.. x")), "", "no version in its header"},
		{"vmlinux", elf + "Linux version %s" + "\x00Linux version 6.9.3+ (me@here)", "6.9.3+", ""},
		{"large vmlinux", elf + long + "Linux version 6.9.3 (me@here)", "6.9.3", ""},
		{"silent vmlinux", elf + long + long, "", ""},
		{"foreign vmlinux", elf[:18] + "\xb7\x00", "", "not a kernel for x86-64"},
		{"empty", "", "", "not a Linux kernel"},
		{"text", strings.Repeat("kernel\n", 1000), "", "not a Linux kernel"},
	} {
		path := filepath.Join(t.TempDir(), tt.name)
		if err := os.WriteFile(path, []byte(tt.content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := KernelVersion(path)
		if tt.err != "" {
			wantError(t, err, tt.name+`": `+tt.err)
		} else if got != tt.want || err != nil {
			t.Errorf("%s: %q, %v, want %q", tt.name, got, err, tt.want)
		}
	}
	_, err := KernelVersion("/no/such/kernel")
	wantError(t, err, `open kernel "/no/such/kernel": no such file or directory`)
}

func FuzzParseBzImage(f *testing.F) {
	f.Add(bzImage("6.1.0 x"))
	f.Add(bzImage("6.1.0"))
	f.Add(bzImage("6.1.0 x")[:0xa03])
	f.Fuzz(func(t *testing.T, b []byte) {
		version, err := parseBzImage(b)
		if err == nil && !plausibleVersion(version) {
			t.Errorf("version %q", version)
		}
	})
}
