package tree

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// Unpack reads what Pack wrote from r and puts it at target: under this name, or
// where there is a folder of that name, into it as name. The folder that it comes
// into has to be there. Files that are there already are replaced, folders added
// to. Nothing is written outside, whatever the stream says and whichever
// symbolic links it brings.
//
// Each file has a temporary name until it is whole, and so has a folder that was
// not there before. When Unpack fails nothing of these is left.
func Unpack(r io.Reader, target, name string) error {
	into, target := splitTarget(target, name)
	if target == "" {
		return fmt.Errorf("copy to %q: want the name of a file or folder", name)
	}
	dir, err := os.OpenRoot(into)
	if err != nil {
		return err
	}
	defer dir.Close()
	t := newStream(r)
	header, err := t.next()
	if err != nil {
		return noEOF(err)
	}
	if header.Typeflag != tar.TypeDir {
		err = errors.Join(unpackOne(dir, target, header, t), onlyOne(t))
	} else {
		err = unpackFolder(dir, target, header, t)
	}
	if err != nil {
		return err
	}
	// What fills up the last block of the archive.
	_, err = io.Copy(io.Discard, r)
	return err
}

// Copy passes a stream on, and fails unless it is whole.
func Copy(w io.Writer, r io.Reader) error {
	t := newStream(io.TeeReader(r, w))
	for {
		_, err := t.next()
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
		if _, err := io.Copy(io.Discard, t); err != nil {
			return fmt.Errorf("read files: %w", noEOF(err))
		}
	}
}

// stream reads tar entries. The archive's end mark counts, and not the end of
// what is read: a sender that died between two files leaves none.
type stream struct {
	*tar.Reader
	source *source
}

// source notes that the end of a reader was reached.
type source struct {
	r     io.Reader
	ended bool
}

func newStream(r io.Reader) *stream {
	s := &source{r: r}
	return &stream{tar.NewReader(s), s}
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.ended = s.ended || err == io.EOF && n == 0
	if n > 0 && err == io.EOF {
		err = nil // it will say so again
	}
	return n, err
}

// next is the next entry; io.EOF at the end mark.
func (s *stream) next() (*tar.Header, error) {
	h, err := s.Reader.Next()
	if err == io.EOF && s.source.ended {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && err != io.EOF {
		err = fmt.Errorf("read files: %w", err)
	}
	return h, err
}

// splitTarget finds out what a target means: the folder that has to be there,
// and the name in it.
func splitTarget(target, name string) (dir, base string) {
	if fi, err := os.Stat(target); err == nil && fi.IsDir() || strings.HasSuffix(target, "/") {
		dir, base = target, name
	} else {
		dir, base = filepath.Dir(target), filepath.Base(target)
	}
	if !filepath.IsLocal(base) || base == "." || strings.Contains(base, "/") {
		return dir, ""
	}
	return dir, base
}

// onlyOne reads the stream's end.
func onlyOne(t *stream) error {
	h, err := t.next()
	switch {
	case err == io.EOF:
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("read files: %q is below a file", h.Name)
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// temporary is a name for what is not whole.
func temporary() string { return fmt.Sprintf(".vmrun-%016x", rand.Uint64()) }

// unpackFolder unpacks a folder as target: under another name where it is new.
func unpackFolder(dir *os.Root, target string, first *tar.Header, t *stream) (err error) {
	fi, err := dir.Lstat(target)
	if err == nil {
		if !fi.IsDir() {
			return &fs.PathError{Op: "copy folder", Path: filepath.Join(dir.Name(), target), Err: errors.New("a file of that name is there")}
		}
		return unpackAll(dir, target, first, t)
	}
	name := temporary()
	defer func() {
		if err != nil {
			err = errors.Join(err, dir.RemoveAll(name))
		}
	}()
	if err := unpackAll(dir, name, first, t); err != nil {
		return err
	}
	return dir.Rename(name, target)
}

// unpackAll unpacks a folder and all that is in it.
func unpackAll(dir *os.Root, target string, first *tar.Header, t *stream) error {
	// A folder gets its mode and time when all is in it, the innermost first.
	folders := []*tar.Header{first}
	if err := makeFolder(dir, target); err != nil {
		return err
	}
	at := func(entry string) (string, error) {
		_, below, _ := strings.Cut(strings.TrimPrefix(entry, "./"), "/")
		below = strings.TrimSuffix(below, "/")
		if below != "" && !filepath.IsLocal(below) {
			return "", fmt.Errorf("read files: %q leads out of the folder", entry)
		}
		return path.Join(target, below), nil
	}
	for {
		header, err := t.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		name, err := at(header.Name)
		if err != nil {
			return err
		}
		if header.Typeflag == tar.TypeLink {
			// Not ours, but tar's: another name of a file that came before.
			if header.Linkname, err = at(header.Linkname); err != nil {
				return err
			}
		}
		if header.Typeflag == tar.TypeDir {
			folders = append(folders, header)
			err = makeFolder(dir, name)
		} else {
			err = unpackOne(dir, name, header, t)
		}
		if err != nil {
			return err
		}
	}
	for i := len(folders) - 1; i >= 0; i-- {
		name, err := at(folders[i].Name)
		if err != nil {
			return err
		}
		if err := furnish(dir, name, folders[i]); err != nil {
			return err
		}
	}
	return nil
}

// makeFolder makes a folder that may be there. Until all is in it its owner may
// write to it.
func makeFolder(dir *os.Root, name string) error {
	err := dir.Mkdir(name, 0o700)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	fi, err := dir.Lstat(name)
	if err == nil && !fi.IsDir() {
		err = &fs.PathError{Op: "copy folder", Path: filepath.Join(dir.Name(), name), Err: errors.New("a file of that name is there")}
	}
	return err
}

// unpackOne unpacks a file or a symbolic link.
func unpackOne(dir *os.Root, name string, header *tar.Header, content io.Reader) (err error) {
	if fi, err := dir.Lstat(name); err == nil && fi.IsDir() {
		return &fs.PathError{Op: "copy", Path: filepath.Join(dir.Name(), name), Err: errors.New("a folder of that name is there")}
	}
	whole := path.Join(path.Dir(name), temporary())
	defer func() {
		if err != nil {
			if gone := dir.Remove(whole); !errors.Is(gone, fs.ErrNotExist) {
				err = errors.Join(err, gone)
			}
		}
	}()
	switch header.Typeflag {
	case tar.TypeReg:
		if err := writeFile(dir, whole, header, content); err != nil {
			return err
		}
	case tar.TypeSymlink:
		if err := dir.Symlink(header.Linkname, whole); err != nil {
			return err
		}
	case tar.TypeLink:
		if err := dir.Link(header.Linkname, whole); err != nil {
			return err
		}
	default:
		return fmt.Errorf("read files: %q is not a file, folder or symbolic link", header.Name)
	}
	return dir.Rename(whole, name)
}

func writeFile(dir *os.Root, name string, header *tar.Header, content io.Reader) error {
	f, err := dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("copy %s: %w", header.Name, noEOF(err))
	}
	return furnish(dir, name, header)
}

// furnish sets permissions and time.
func furnish(dir *os.Root, name string, header *tar.Header) error {
	mode := fs.FileMode(header.Mode) & fs.ModePerm
	if header.Mode&0o1000 != 0 {
		mode |= fs.ModeSticky
	}
	if err := dir.Chmod(name, mode&permissions); err != nil {
		return err
	}
	modified := header.ModTime
	if modified.IsZero() {
		modified = time.Unix(0, 0)
	}
	return dir.Chtimes(name, time.Time{}, modified)
}
