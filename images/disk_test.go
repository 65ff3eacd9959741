package images

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// prepare is PrepareDisk with an overlay folder of its own, which must be empty
// afterwards whatever happens.
func prepare(t *testing.T, spec DiskSpec) (*Disk, error) {
	t.Helper()
	dir := t.TempDir()
	disk, err := PrepareDisk(t.Context(), needProgram(t, "qemu-img"), dir, spec)
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left in the overlay folder: %v", left)
	}
	if err == nil {
		t.Cleanup(func() { disk.Close() })
	}
	return disk, err
}

func mustPrepare(t *testing.T, spec DiskSpec) *Disk {
	t.Helper()
	disk, err := prepare(t, spec)
	if err != nil {
		t.Fatal(err)
	}
	return disk
}

// rawFile makes an image of size bytes of 0xAA.
func rawFile(t *testing.T, name string, size int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, bytes.Repeat([]byte{0xaa}, size), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// qemuImg runs qemu-img in dir.
func qemuImg(t *testing.T, dir string, args ...string) {
	t.Helper()
	cmd := exec.Command(needProgram(t, "qemu-img"), args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %v: %v\n%s", args, err, out)
	}
}

// qemuIO runs a command of qemu-io on a disk whose layers it gets as a machine
// would, by descriptor.
func qemuIO(t *testing.T, d *Disk, command string) string {
	t.Helper()
	var opts []string
	cmd := exec.Command(needProgram(t, "qemu-io"))
	prefix, readOnly := "", "off"
	for i, l := range d.Layers {
		fd := string(rune('3' + i))
		opts = append(opts, prefix+"driver="+string(l.Format), prefix+"read-only="+readOnly,
			prefix+"file.driver=file", prefix+"file.read-only="+readOnly, prefix+"file.filename=/proc/self/fd/"+fd)
		cmd.ExtraFiles = append(cmd.ExtraFiles, l.File)
		prefix, readOnly = prefix+"backing.", "on"
	}
	cmd.Args = append(cmd.Args, "-c", command, "--image-opts", strings.Join(opts, ","))
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Contains(string(out), "rror") || strings.Contains(string(out), "failed") {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	return string(out)
}

func TestThrowAwayDisk(t *testing.T) {
	for _, name := range []string{"disk.img", "with,comma", "-leading", "new\nline", "nbd:x"} {
		t.Run(name, func(t *testing.T) {
			base := rawFile(t, name, 1<<20)
			before, _ := os.ReadFile(base)
			disk := mustPrepare(t, DiskSpec{Path: base, Format: FormatAuto, Size: 2<<20 + 1})
			if want := int64(2<<20 + 512); disk.Size != want {
				t.Errorf("size %d, want %d", disk.Size, want)
			}
			qemuIO(t, disk, "read -P 0xaa 0 1M")
			qemuIO(t, disk, "read -P 0 1M 1M")
			qemuIO(t, disk, "write -P 0x55 4096 1M")
			qemuIO(t, disk, "read -P 0x55 4096 1M")
			qemuIO(t, disk, "read -P 0xaa 0 4096")
			if after, _ := os.ReadFile(base); !bytes.Equal(before, after) {
				t.Error("the base was written to")
			}
			var st unix.Stat_t
			if err := unix.Fstat(int(disk.Layers[0].File.Fd()), &st); err != nil || st.Nlink != 0 {
				t.Errorf("the overlay has %d names, %v", st.Nlink, err)
			}
			if _, err := disk.Layers[1].File.Write([]byte("x")); !errors.Is(err, syscall.EBADF) {
				t.Errorf("write to the base's descriptor: %v", err)
			}
		})
	}
}

func TestDiskIsNotInherited(t *testing.T) {
	disk := mustPrepare(t, DiskSpec{Path: rawFile(t, "a", 512), Format: FormatRaw})
	for _, l := range disk.Layers {
		flags, err := unix.FcntlInt(l.File.Fd(), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("layer %q: flags %#x, %v", l.Path, flags, err)
		}
	}
}

func TestKeptDisk(t *testing.T) {
	for _, format := range []Format{FormatRaw, FormatQCOW2} {
		path := filepath.Join(t.TempDir(), "-a,b")
		qemuImg(t, "/", "create", "-q", "-f", string(format), path, "1M")
		disk := mustPrepare(t, DiskSpec{Path: path, Format: format, Keep: true, Size: 3 << 20})
		if len(disk.Layers) != 1 || disk.Layers[0].ReadOnly || disk.Size != 3<<20 {
			t.Fatalf("%s: %+v", format, disk)
		}
		qemuIO(t, disk, "write -P 0x55 2M 1M")
		disk.Close()
		again := mustPrepare(t, DiskSpec{Path: path, Format: format, Keep: true, Size: 1})
		if again.Size != 3<<20 {
			t.Errorf("%s: size %d after growing", format, again.Size)
		}
		qemuIO(t, again, "read -P 0x55 2M 1M")
	}
}

// chain makes base.img, mid.qcow2 over it, and top.qcow2 over that, in a folder
// from which their relative names don't resolve.
func chain(t *testing.T) (top string) {
	t.Helper()
	dir := filepath.Dir(rawFile(t, "base.img", 1<<20))
	if err := os.Rename(filepath.Join(dir, "base.img"), filepath.Join(dir, "b,ase")); err != nil {
		t.Fatal(err)
	}
	qemuImg(t, dir, "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "b,ase", "mid.qcow2")
	qemuImg(t, dir, "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "mid.qcow2", "top.qcow2", "4M")
	return filepath.Join(dir, "top.qcow2")
}

func TestBackingChain(t *testing.T) {
	top := chain(t)
	disk := mustPrepare(t, DiskSpec{Path: top, Format: FormatQCOW2})
	var formats []string
	for _, l := range disk.Layers {
		formats = append(formats, string(l.Format))
	}
	if got := strings.Join(formats, " "); got != "qcow2 qcow2 qcow2 raw" || disk.Size != 4<<20 {
		t.Fatalf("layers %s, size %d", got, disk.Size)
	}
	qemuIO(t, disk, "read -P 0xaa 0 1M")
	qemuIO(t, disk, "read -P 0 1M 3M")

	_, err := prepare(t, DiskSpec{Path: top, Format: FormatAuto})
	wantError(t, err, `backed by "mid.qcow2"`)
	_, err = prepare(t, DiskSpec{Path: top, Format: FormatQCOW2, Keep: true, Size: 1 << 30})
	wantError(t, err, "an image with a backing image")

	dir := filepath.Dir(top)
	qemuImg(t, dir, "rebase", "-u", "-F", "qcow2", "-b", "top.qcow2", "mid.qcow2")
	_, err = prepare(t, DiskSpec{Path: top, Format: FormatQCOW2})
	wantError(t, err, "its own backing image")
	qemuImg(t, dir, "rebase", "-u", "-F", "qcow2", "-b", "gone.qcow2", "mid.qcow2")
	_, err = prepare(t, DiskSpec{Path: top, Format: FormatQCOW2})
	wantError(t, err, `open backing image "`+filepath.Join(dir, "gone.qcow2")+`": no such file`)
	qemuImg(t, dir, "rebase", "-u", "-F", "raw", "-b", "nbd://host/x", "mid.qcow2")
	_, err = prepare(t, DiskSpec{Path: top, Format: FormatQCOW2})
	wantError(t, err, "is not a file")
}

func wantError(t *testing.T, err error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("error %v, want %q", err, text)
	}
}

func TestDiskErrors(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	raw := rawFile(t, "raw", 4096)
	for _, tt := range []struct {
		spec DiskSpec
		want string
	}{
		{DiskSpec{Path: filepath.Join(dir, "gone"), Format: FormatRaw}, `gone": no such file or directory`},
		{DiskSpec{Path: dir, Format: FormatRaw}, "neither a file nor a block device"},
		{DiskSpec{Path: fifo, Format: FormatRaw}, "neither a file nor a block device"},
		{DiskSpec{Path: "/dev/null", Format: FormatRaw}, "neither a file nor a block device"},
		{DiskSpec{Path: raw, Format: FormatQCOW2}, "not a qcow2 image"},
		{DiskSpec{Path: raw, Format: FormatAuto, Keep: true}, "a kept disk needs its format"},
		{DiskSpec{Path: raw, Format: FormatRaw, Size: -1}, "size of -1 bytes"},
		{DiskSpec{Path: raw, Format: FormatRaw, Size: 1 << 62}, "run " + needProgram(t, "qemu-img") + " create: exit status 1"},
	} {
		_, err := prepare(t, tt.spec)
		wantError(t, err, tt.want)
	}
}

func TestOverlayFolderMissing(t *testing.T) {
	_, err := PrepareDisk(t.Context(), needProgram(t, "qemu-img"), "/no/such/folder", DiskSpec{Path: rawFile(t, "a", 512), Format: FormatRaw})
	wantError(t, err, `create overlay in "/no/such/folder": no such file or directory`)
}

func TestPrepareDiskCancelled(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("no longer wanted")
	cancel(gone)
	dir := t.TempDir()
	_, err := PrepareDisk(ctx, needProgram(t, "qemu-img"), dir, DiskSpec{Path: rawFile(t, "a", 512), Format: FormatRaw})
	if !errors.Is(err, gone) {
		t.Errorf("error %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// A real QEMU process holds the image while others are prepared from it.
func TestLockedImage(t *testing.T) {
	path := rawFile(t, "disk", 1<<20)
	throwAway := DiskSpec{Path: path, Format: FormatRaw}
	kept := DiskSpec{Path: path, Format: FormatRaw, Keep: true}

	release := hold(t, path, "-r")
	mustPrepare(t, throwAway)
	release()

	release = hold(t, path)
	for _, spec := range []DiskSpec{throwAway, kept} {
		if _, err := prepare(t, spec); !errors.Is(err, ErrLocked) {
			t.Errorf("keep=%v: error %v while another writes", spec.Keep, err)
		}
	}
	copied := filepath.Join(t.TempDir(), "copy")
	if err := Copy(t.Context(), path, copied); !errors.Is(err, ErrLocked) {
		t.Errorf("copied while another writes: %v", err)
	}
	if _, err := os.Lstat(copied); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of what is refused there is a copy: %v", err)
	}
	release()
	mustPrepare(t, kept)
	release = hold(t, path, "-r")
	if err := Copy(t.Context(), path, copied); err != nil {
		t.Errorf("copied while another reads: %v", err)
	}
	release()
}

// hold keeps an image open in a qemu-io until release is called.
func hold(t *testing.T, path string, flags ...string) (release func()) {
	t.Helper()
	cmd := exec.Command(needProgram(t, "qemu-io"), append(flags, "-f", "raw", path)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// Its prompt comes when the image is open.
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return func() {
		in.Close()
		io.Copy(io.Discard, out)
		if err := cmd.Wait(); err != nil {
			t.Errorf("qemu-io: %v", err)
		}
	}
}
