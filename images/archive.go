package images

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/vmrun/vmrun/images/guest"
)

// archiveLayout is raised whenever write puts anything else into an archive for
// the same recipe, so that older archives in the cache are no longer used.
const archiveLayout = 1

// skeleton is what every guest has besides its files. The kernel opens the
// console before anything is mounted.
func skeleton() []cpio.Record {
	var records []cpio.Record
	for _, dir := range []string{"bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "var", "vmrun"} {
		records = append(records, cpio.Directory(dir, 0o755))
	}
	return append(records,
		cpio.Symlink("sbin", "bin"),
		cpio.Symlink("usr/bin", "../bin"),
		cpio.Symlink("usr/sbin", "../bin"),
		cpio.Symlink("var/run", "../run"),
		cpio.Symlink("etc/mtab", "../proc/mounts"),
		cpio.CharDev("dev/console", 0o600, 5, 1),
		cpio.CharDev("dev/null", 0o666, 1, 3),
	)
}

// write writes the initramfs: a cpio archive of the kind "newc", the same bytes
// for the same input. It is not compressed: the kernel starts sooner so. The
// last file has seal as its content.
func (r *recipe) write(ctx context.Context, w io.Writer, seal string) error {
	a := archive{w: cpio.Newc.Writer(w)}
	if err := a.add(skeleton()...); err != nil {
		return err
	}
	if err := a.addHostFile("init", r.init); err != nil {
		return err
	}
	if r.busybox != "" {
		if err := a.addBusybox(ctx, r.busybox); err != nil {
			return err
		}
	}
	for _, m := range r.modules {
		data, err := readModule(filepath.Join(r.modulesDir, m.path))
		if err != nil {
			return err
		}
		if err := a.addFile(r.guestPath(m), data); err != nil {
			return err
		}
	}
	config, err := json.Marshal(r.config)
	if err != nil {
		return err
	}
	if err := a.addFile(guest.ConfigPath, config); err != nil {
		return err
	}
	if err := a.addFile(sealPath, []byte(seal)); err != nil {
		return err
	}
	return a.add(cpio.TrailerRecord)
}

// archive writes a cpio archive.
type archive struct {
	w    cpio.RecordWriter
	last uint64 // inode number
}

// add writes records, each as an inode of its own: the kernel takes equal
// numbers for hard links.
func (a *archive) add(records ...cpio.Record) error {
	for _, r := range records {
		a.last++
		r.Ino, r.NLink = a.last, 1
		if err := a.w.WriteRecord(r); err != nil {
			return fmt.Errorf("write %q into archive: %w", r.Name, err)
		}
	}
	return nil
}

// addFile writes a file, after the folders that it is in.
func (a *archive) addFile(name string, data []byte) error {
	var folders []cpio.Record
	for dir := path.Dir(name); dir != "/" && dir != "."; dir = path.Dir(dir) {
		folders = append(folders, cpio.Directory(dir, 0o755))
	}
	slices.Reverse(folders)
	// The library's writer leaves out what it has written before.
	if err := a.add(folders...); err != nil {
		return err
	}
	return a.add(cpio.StaticFile(name, string(data), 0o644))
}

// addHostFile copies a program of the host.
func (a *archive) addHostFile(name, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	return a.add(cpio.Record{ReaderAt: f, Info: cpio.Info{
		Name: name, Mode: cpio.S_IFREG | 0o755, FileSize: uint64(fi.Size()),
	}})
}

// addBusybox copies a busybox, and adds a link for each of its applets.
func (a *archive) addBusybox(ctx context.Context, file string) error {
	if err := a.addHostFile("bin/busybox", file); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, file, "--list").Output()
	if err != nil {
		return fmt.Errorf("list applets of %q: %w", file, err)
	}
	applets := strings.Fields(string(out))
	slices.Sort(applets)
	for _, name := range applets {
		if name == "busybox" || strings.Contains(name, "/") {
			continue
		}
		if err := a.add(cpio.Symlink("bin/"+name, "busybox")); err != nil {
			return err
		}
	}
	return nil
}
