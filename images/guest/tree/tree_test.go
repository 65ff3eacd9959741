package tree

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// plant makes a folder with something of everything.
func plant(t *testing.T, dir string) {
	t.Helper()
	then := time.Date(2001, 2, 3, 4, 5, 6, 789000000, time.UTC)
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	err := errors.Join(
		os.MkdirAll(filepath.Join(dir, "sub", "empty"), 0o755),
		os.WriteFile(filepath.Join(dir, "a file, with a comma"), []byte("text"), 0o640),
		os.WriteFile(filepath.Join(dir, "sub", "run"), []byte("#!/bin/sh\n"), 0o755),
		os.WriteFile(filepath.Join(dir, "sub", "big"), big, 0o400),
		os.WriteFile(filepath.Join(dir, "none"), nil, 0o600),
		os.WriteFile(filepath.Join(dir, strings.Repeat("ä", 120)), make([]byte, 512), 0o600),
		os.Symlink("sub/run", filepath.Join(dir, "link")),
		os.Symlink("/nowhere/at/all", filepath.Join(dir, "dangling")),
		os.Chtimes(filepath.Join(dir, "sub", "run"), then, then),
		os.Chmod(filepath.Join(dir, "sub"), 0o555),
		os.Chtimes(filepath.Join(dir, "sub"), then, then),
		os.Chmod(filepath.Join(dir, "sub", "empty"), 0o777|fs.ModeSticky),
	)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(filepath.Join(dir, "sub"), 0o755) })
}

// listing describes all below a folder.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, file)
		fmt.Fprintf(&b, "%s %v", rel, fi.Mode())
		switch {
		case fi.Mode().IsRegular():
			text, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %d %x %v", fi.ModTime().UnixNano(), len(text), bytes.Count(text, []byte("7")))
		case fi.IsDir() && rel != ".":
			fmt.Fprintf(&b, " %d", fi.ModTime().UnixNano())
		case fi.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(file)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %s", target)
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func packed(t *testing.T, name string) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	if err := Pack(&b, name); err != nil {
		t.Fatal(err)
	}
	return &b
}

func TestFolder(t *testing.T) {
	dir := t.TempDir()
	from := filepath.Join(dir, "from")
	if err := os.Mkdir(from, 0o750); err != nil {
		t.Fatal(err)
	}
	plant(t, from)
	want := listing(t, from)
	b := packed(t, from)
	size, err := Size(from)
	if err != nil || size != int64(b.Len()) {
		t.Errorf("Size is %d, %v; %d bytes were packed", size, err, b.Len())
	}
	var passed bytes.Buffer
	if err := Copy(&passed, bytes.NewReader(b.Bytes())); err != nil || !bytes.Equal(passed.Bytes(), b.Bytes()) {
		t.Errorf("Copy: %v, %d of %d bytes", err, passed.Len(), b.Len())
	}
	again := bytes.NewReader(b.Bytes())
	// Under another name, and into a folder that is there; then over itself.
	for _, target := range []string{"to", ".", "."} {
		if err := Unpack(again, filepath.Join(dir, target), "copy"); err != nil {
			t.Fatal(err)
		}
		again.Seek(0, 0)
	}
	for _, name := range []string{"to", "copy"} {
		if diff := cmp.Diff(want, listing(t, filepath.Join(dir, name))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		os.Chmod(filepath.Join(dir, name, "sub"), 0o755)
	}
	left(t, dir, "copy", "from", "to")
}

// left fails the test unless a folder has just these entries.
func left(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("left in %s (-want +got):\n%s", dir, diff)
	}
}

func TestFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := errors.Join(os.WriteFile(file, []byte("new"), 0o751), os.Mkdir(filepath.Join(dir, "folder"), 0o755),
		os.WriteFile(filepath.Join(dir, "old"), []byte("longer than the new"), 0o600), os.Symlink("file", filepath.Join(dir, "link"))); err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string]string{"old": "old", "other": "other", "folder": "folder/name", "folder/": "folder/name"} {
		if err := Unpack(packed(t, filepath.Join(dir, "link")), dir+"/"+target, "name"); err != nil {
			t.Error(err)
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, want))
		fi, _ := os.Stat(filepath.Join(dir, want))
		if err != nil || string(text) != "new" || fi.Mode() != 0o751 {
			t.Errorf("%s: %q, %v, %v", want, text, fi.Mode(), err)
		}
	}
	left(t, dir, "file", "folder", "link", "old", "other")
	left(t, filepath.Join(dir, "folder"), "name")
}

// Whatever goes wrong, nothing is left under the name or beside it.
func TestFailures(t *testing.T) {
	dir := t.TempDir()
	from := filepath.Join(dir, "from")
	if err := errors.Join(os.MkdirAll(filepath.Join(from, "sub"), 0o755), os.WriteFile(filepath.Join(from, "sub", "f"), make([]byte, 4096), 0o600),
		os.Mkdir(filepath.Join(dir, "folder"), 0o755), os.MkdirAll(filepath.Join(dir, "folder2", "name"), 0o755), os.WriteFile(filepath.Join(dir, "file"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	folder, file := packed(t, from).Bytes(), packed(t, filepath.Join(from, "sub", "f")).Bytes()
	for name, tt := range map[string]struct {
		stream []byte
		target string
		want   string
	}{
		"nothing":                 {nil, "to", "unexpected EOF"},
		"garbage":                 {bytes.Repeat([]byte("garbage "), 512), "to", "invalid tar header"},
		"half a file":             {file[:len(file)/2], "to", "unexpected EOF"},
		"half a folder":           {folder[:len(folder)/2], "to", "unexpected EOF"},
		"no end mark":             {file[:len(file)-1024], "new", "unexpected EOF"},
		"no end mark of a folder": {folder[:len(folder)-1024], "to", "unexpected EOF"},
		"a folder after a device": {join(t, entry{"tree", tar.TypeDir, ""}, entry{"tree/d", tar.TypeBlock, ""}), "to", "not a file"},
		"a link out of it":        {join(t, entry{"tree", tar.TypeDir, ""}, entry{"tree/l", tar.TypeLink, "tree/../../file"}), "to", "leads out"},
		"half a file, in folder":  {file[:len(file)/2], "folder", "unexpected EOF"},
		"no such folder":          {file, "absent/to", "no such file or directory"},
		"absent folder by slash":  {file, "absent/", "no such file or directory"},
		"a folder over a file":    {folder, "file", "a file of that name is there"},
		"a file over a folder":    {file, "folder2", "a folder of that name is there"},
		"a file into a file":      {file, "file/", "not a directory"},
		"a folder with no name":   {folder, "..", "want the name"},
		"two files":               {join(t, entry{"tree", tar.TypeReg, ""}, entry{"tree/a", tar.TypeReg, ""}), "new", "below a file"},
		"a device":                {join(t, entry{"tree", tar.TypeChar, ""}), "to", "not a file, folder or symbolic link"},
		"out of the folder":       {join(t, entry{"tree", tar.TypeDir, ""}, entry{"tree/../../x", tar.TypeReg, ""}), "to", "leads out"},
		"by a symbolic link":      {join(t, entry{"tree", tar.TypeDir, ""}, entry{"tree/l", tar.TypeSymlink, dir}, entry{"tree/l/x", tar.TypeReg, ""}), "to", "escapes"},
		"a folder by such a link": {join(t, entry{"tree", tar.TypeDir, ""}, entry{"tree/l", tar.TypeSymlink, dir}, entry{"tree/l", tar.TypeDir, ""}), "to", "a file of that name"},
	} {
		target := filepath.Join(dir, tt.target)
		if strings.HasSuffix(tt.target, "/") {
			target += "/"
		}
		as := "name"
		if tt.target == ".." {
			target, as = dir, ".."
		}
		err := Unpack(bytes.NewReader(tt.stream), target, as)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
		os.Remove(filepath.Join(dir, "new")) // the first file is whole
		if err := Copy(&bytes.Buffer{}, bytes.NewReader(tt.stream)); err == nil && strings.Contains(tt.want, "EOF") {
			t.Errorf("%s: Copy finds it whole", name)
		}
	}
	left(t, dir, "file", "folder", "folder2", "from")
	left(t, filepath.Join(dir, "folder"))
}

type entry struct {
	name string
	kind byte
	link string
}

// join makes a stream that Pack would not.
func join(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if err := w.WriteHeader(&tar.Header{Name: e.name, Typeflag: e.kind, Linkname: e.link, Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestPackRefuses(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := Pack(&bytes.Buffer{}, dir)
	if err == nil || !strings.Contains(err.Error(), "fifo: not a file") {
		t.Errorf("a FIFO: %v", err)
	}
	if err := Pack(&bytes.Buffer{}, filepath.Join(dir, "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what is not there: %v", err)
	}
}

// Whatever a guest sends, nothing is written but below the target.
func FuzzUnpack(f *testing.F) {
	dir := f.TempDir()
	os.WriteFile(filepath.Join(dir, "x"), []byte("text"), 0o600)
	os.Symlink("..", filepath.Join(dir, "up"))
	var b bytes.Buffer
	if err := Pack(&b, dir); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, stream []byte) {
		dir := t.TempDir()
		into := filepath.Join(dir, "into")
		if err := os.Mkdir(into, 0o700); err != nil {
			t.Fatal(err)
		}
		Unpack(bytes.NewReader(stream), into, "name")
		left(t, dir, "into")
	})
}
