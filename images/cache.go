package images

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"
)

// cache is a folder of initramfs files micro-DIGEST.cpio, made one at a time
// under micro.lock.
type cache struct {
	dir string
}

const (
	cachePrefix = "micro-"
	cacheSuffix = ".cpio"
	cacheTemp   = "tmp-micro-"

	// sealPath is the last file of every archive. It holds the digest, so that
	// the end of a file tells whether all of it is there.
	sealPath = "/vmrun/seal"
	sealTail = 1 << 10 // bytes at a file's end among which the seal is
)

// provide returns the path of a recipe's archive, which it makes where there is none.
func (c cache) provide(ctx context.Context, r *recipe) (string, error) {
	digest, err := r.digest()
	if err != nil {
		return "", err
	}
	path := filepath.Join(c.dir, cachePrefix+digest+cacheSuffix)
	if intact(path, digest) {
		return path, markUsed(path)
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return "", err
	}
	// For the fifty machines that start at once: one works, the others wait.
	lock := flock.New(filepath.Join(c.dir, "micro.lock"))
	if err := lock.Lock(); err != nil {
		return "", err
	}
	defer lock.Close()
	if intact(path, digest) {
		return path, markUsed(path)
	}
	return path, c.create(ctx, r, path, digest)
}

// create writes an archive under another name, and gives it its own when it is
// complete and on disk.
func (c cache) create(ctx context.Context, r *recipe, path, digest string) (err error) {
	f, err := os.CreateTemp(c.dir, cacheTemp)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriterSize(f, 1<<20)
	if err := r.write(ctx, w, digest); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	// Whoever rebuilt a file while it was copied would find a mixture.
	if now, err := r.digest(); err != nil || now != digest {
		return errors.Join(errors.New("its files changed meanwhile: try again"), err)
	}
	return os.Rename(f.Name(), path)
}

// intact reports whether path is a complete archive of the digest that nobody
// else could have written.
func intact(path, digest string) bool {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return false
	}
	if st.Mode&0o022 != 0 || int(st.Uid) != os.Geteuid() {
		return false
	}
	tail := make([]byte, min(st.Size, sealTail))
	if _, err := f.ReadAt(tail, st.Size-int64(len(tail))); err != nil && !errors.Is(err, io.EOF) {
		return false
	}
	return bytes.Contains(tail, []byte(sealPath[1:]+"\x00")) && bytes.Contains(tail, []byte(digest))
}

// markUsed tells SweepMicro that an archive is in use.
func markUsed(path string) error {
	now := time.Now()
	return os.Chtimes(path, now, now)
}

// SweepMicro removes from cacheDir the initramfs files that PrepareMicro has
// not returned since the given time, and what killed processes left half
// written. It returns their paths. A missing folder is an empty one.
func SweepMicro(cacheDir string, since time.Time) (removed []string, err error) {
	entries, err := os.ReadDir(cacheDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("sweep micro guests: %w", err)
	}
	var errs []error
	for _, e := range entries {
		name := e.Name()
		archive := strings.HasPrefix(name, cachePrefix) && strings.HasSuffix(name, cacheSuffix)
		if !archive && !strings.HasPrefix(name, cacheTemp) {
			continue
		}
		fi, err := e.Info()
		if err != nil || !fi.Mode().IsRegular() || !fi.ModTime().Before(since) {
			continue
		}
		path := filepath.Join(cacheDir, name)
		if err := os.Remove(path); err != nil {
			errs = append(errs, fmt.Errorf("sweep micro guests: %w", err))
			continue
		}
		removed = append(removed, path)
	}
	return removed, errors.Join(errs...)
}
