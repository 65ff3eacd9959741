// Package tree moves a file or a folder with all that is in it as a tar stream:
// content, permissions, times, symbolic links. Owners are not moved: what
// arrives belongs to who unpacks it.
package tree

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
)

// permissions is what is moved of a file's mode. Bits that give away the rights
// of a file's owner are not: the owner is another one.
const permissions = fs.ModePerm | fs.ModeSticky

// root is the name of the packed file or folder in the stream; all else is below.
const root = "tree"

// Pack writes the file or folder at name to w. A symbolic link at name itself is
// followed. What is no file, folder or symbolic link is an error, and so is a
// file that changes its size meanwhile.
func Pack(w io.Writer, name string) error {
	t := tar.NewWriter(w)
	err := walk(name, func(file string, header *tar.Header) error { return pack(t, file, header) })
	if err != nil {
		return err
	}
	return t.Close()
}

// Size is how many bytes Pack writes, if nothing changes before.
func Size(name string) (int64, error) {
	const block, endMark = 512, 1024
	size := int64(endMark)
	err := walk(name, func(_ string, header *tar.Header) error {
		var packed bytes.Buffer
		if err := tar.NewWriter(&packed).WriteHeader(header); err != nil {
			return err
		}
		size += int64(packed.Len()) + (header.Size+block-1)/block*block
		return nil
	})
	return size, err
}

// walk calls f with each file, folder and symbolic link at and below name.
func walk(name string, f func(file string, header *tar.Header) error) error {
	top, err := filepath.EvalSymlinks(name)
	if err != nil {
		return err
	}
	return filepath.WalkDir(top, func(file string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(top, file)
		if err != nil {
			return err
		}
		header, err := newHeader(file, path.Join(root, filepath.ToSlash(rel)))
		if err != nil {
			return err
		}
		return f(file, header)
	})
}

// newHeader describes one entry.
func newHeader(file, name string) (*tar.Header, error) {
	fi, err := os.Lstat(file)
	if err != nil {
		return nil, err
	}
	header := &tar.Header{Name: name, Mode: tarMode(fi.Mode()), ModTime: fi.ModTime(), Format: tar.FormatPAX}
	switch {
	case fi.Mode().IsRegular():
		header.Typeflag, header.Size = tar.TypeReg, fi.Size()
	case fi.IsDir():
		header.Typeflag = tar.TypeDir
	case fi.Mode()&fs.ModeSymlink != 0:
		header.Typeflag = tar.TypeSymlink
		header.Linkname, err = os.Readlink(file)
	default:
		err = &fs.PathError{Op: "copy", Path: file, Err: errors.New("not a file, folder or symbolic link")}
	}
	return header, err
}

// pack writes one entry.
func pack(t *tar.Writer, file string, header *tar.Header) error {
	if header.Typeflag != tar.TypeReg {
		return t.WriteHeader(header)
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	header.Size = fi.Size()
	if err := t.WriteHeader(header); err != nil {
		return err
	}
	n, err := io.Copy(t, io.LimitReader(f, header.Size))
	if err == nil && n < header.Size {
		err = &fs.PathError{Op: "copy", Path: file, Err: errors.New("it became shorter meanwhile")}
	}
	return err
}

// tarMode is a mode as tar has it, which is Unix's.
func tarMode(m fs.FileMode) int64 {
	mode := int64(m.Perm())
	if m&fs.ModeSticky != 0 {
		mode |= 0o1000
	}
	return mode
}
