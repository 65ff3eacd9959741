package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Clone copies an image's content to a new file of the given path, which is
// there whole and on the disk when Clone returns, or not at all. Where the file
// system can, both share their blocks; else holes stay holes. Whoever writes to
// src must be stopped.
func Clone(ctx context.Context, src *os.File, path string) error {
	dst, err := os.OpenFile(path+temporarySuffix, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("copy image to %s: %w", path, cause(err))
	}
	err = cloneInto(ctx, dst, src)
	if err == nil {
		err = dst.Sync()
	}
	err = errors.Join(err, dst.Close())
	if err == nil {
		err = os.Rename(dst.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("copy image to %s: %w", path, errors.Join(err, os.Remove(dst.Name())))
	}
	return nil
}

const temporarySuffix = ".new"

// Copy is Clone of an image file or block device that is named and that no virtual
// machine writes to: else the error wraps ErrLocked.
func Copy(ctx context.Context, from, to string) error {
	src, _, err := openImage(from, false)
	if err != nil {
		return fmt.Errorf("copy image %s: %w", from, err)
	}
	defer src.Close()
	if err := checkLocks(src, false); err != nil {
		return fmt.Errorf("copy image %s: %w", from, err)
	}
	return Clone(ctx, src, to)
}

// Replacement is an image file or block device that is to have the content of
// another image.
type Replacement struct {
	Path    string `json:"path"`
	Content string `json:"content"` // path
}

// ReplaceAll gives images the content of others. A file is replaced as a whole,
// and keeps its owner and mode; no virtual machine may use it. Where one of the
// images can't be replaced, or there is no room for what is to be in their place,
// all together, they stay as they are. Block devices, which are written in place,
// come before files: where one fails, all files are still as they were.
func ReplaceAll(ctx context.Context, all []Replacement) (err error) {
	replacings := make([]replacing, len(all))
	for i, wanted := range all {
		replacings[i].Replacement = wanted
	}
	defer func() {
		for i := range replacings {
			err = errors.Join(err, replacings[i].close())
		}
	}()
	for _, step := range []func(*replacing) error{
		(*replacing).open,
		func(r *replacing) error { return r.stage(ctx) },
		(*replacing).write,
		(*replacing).rename,
	} {
		for i, wanted := range all {
			if err := step(&replacings[i]); err != nil {
				return fmt.Errorf("replace image %s: %w", wanted.Path, err)
			}
		}
	}
	return nil
}

// replacing is a replacement that is under way.
type replacing struct {
	Replacement
	src, old *os.File
	device   bool
	staged   string // path of the new content, which is not in its place yet; "": there is none
}

// open makes sure that the image can be replaced.
func (r *replacing) open() (err error) {
	if r.src, err = os.Open(r.Content); err != nil {
		return err
	}
	if r.old, r.device, err = openImage(r.Path, true); err != nil {
		return err
	}
	if r.Path, err = filepath.EvalSymlinks(r.Path); err != nil {
		return err
	}
	return checkLocks(r.old, true)
}

// stage lays the new content of a file beside it.
func (r *replacing) stage(ctx context.Context) error {
	if r.device {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(r.old.Fd()), &st); err != nil {
		return err
	}
	path := r.Path + ".restored"
	if err := Clone(ctx, r.src, path); err != nil {
		return err
	}
	r.staged = path
	if err := os.Chmod(path, os.FileMode(st.Mode&0o777)); err != nil {
		return err
	}
	return os.Chown(path, int(st.Uid), int(st.Gid))
}

// write gives a device its new content.
func (r *replacing) write() error {
	if !r.device {
		return nil
	}
	if err := checkLocks(r.old, true); err != nil { // staging took its time
		return err
	}
	_, err := io.Copy(r.old, r.src)
	return errors.Join(err, r.old.Sync())
}

// rename puts the new content of a file in its place.
func (r *replacing) rename() error {
	if r.device {
		return nil
	}
	if err := checkLocks(r.old, true); err != nil {
		return err
	}
	if err := os.Rename(r.staged, r.Path); err != nil {
		return err
	}
	r.staged = ""
	return nil
}

// close removes what was not put in its place.
func (r *replacing) close() error {
	var err error
	if r.staged != "" {
		err = os.Remove(r.staged)
	}
	for _, f := range []*os.File{r.src, r.old} {
		if f != nil {
			f.Close() // nothing is written by them that was not synced
		}
	}
	return err
}

// chunk is how much is copied before the context is looked at, in bytes.
const chunk = 8 << 20

// cloneInto gives an empty file the content of another.
func cloneInto(ctx context.Context, dst, src *os.File) error {
	if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil {
		return nil
	}
	size, err := src.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if err := dst.Truncate(size); err != nil {
		return err
	}
	for at := int64(0); at < size; {
		from, to, err := nextData(src, at, size)
		if err != nil {
			return err
		}
		if err := copyRange(ctx, dst, src, from, to); err != nil {
			return err
		}
		at = to
	}
	return nil
}

// nextData finds the next part of a file that is no hole (lseek(2)); an empty one
// at the end where there is none.
func nextData(f *os.File, at, size int64) (from, to int64, err error) {
	from, err = unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return size, size, nil
	}
	if err != nil {
		return at, size, nil // a file system without holes
	}
	to, err = unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE)
	return from, to, err
}

func copyRange(ctx context.Context, dst, src *os.File, from, to int64) error {
	for from < to {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n := min(chunk, to-from)
		if _, err := io.Copy(io.NewOffsetWriter(dst, from), io.NewSectionReader(src, from, n)); err != nil {
			return err
		}
		from += n
	}
	return nil
}

// cloneFrom gives an empty file the content of a file that is named.
func cloneFrom(ctx context.Context, dst *os.File, path string) error {
	src, err := os.Open(path)
	if err != nil {
		return err
	}
	defer src.Close()
	return cloneInto(ctx, dst, src)
}
