package images

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestReplaceAll: images get other content with their own mode, by way of a
// link too; all of them, or none if a virtual machine uses one.
func TestReplaceAll(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
		return path
	}
	read := func() map[string]string {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		all := map[string]string{}
		for _, e := range entries {
			text, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			all[e.Name()] = string(text)
		}
		return all
	}
	var wanted []Replacement
	for _, name := range []string{"a", "b"} {
		wanted = append(wanted, Replacement{Path: write(name, "old"), Content: write(name+".saved", "new")})
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(wanted[0].Path, link); err != nil {
		t.Fatal(err)
	}
	wanted[0].Path = link
	before := read()

	user, err := os.OpenFile(wanted[1].Path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	lock := unix.Flock_t{Type: unix.F_RDLCK, Start: lockDoes + permWrite, Len: 1}
	if err := unix.FcntlFlock(user.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		t.Fatal(err)
	}
	if err := ReplaceAll(t.Context(), wanted); !errors.Is(err, ErrLocked) {
		t.Errorf("one is in use: got %v", err)
	}
	if diff := cmp.Diff(before, read()); diff != "" {
		t.Errorf("one is in use, and something changed:\n%s", diff)
	}
	user.Close()

	missing := append(wanted[:2:2], Replacement{Path: wanted[0].Path, Content: filepath.Join(dir, "nothing")})
	if err := ReplaceAll(t.Context(), missing); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the content of one is missing: got %v", err)
	}
	if diff := cmp.Diff(before, read()); diff != "" {
		t.Errorf("the content of one is missing, and something changed:\n%s", diff)
	}

	if err := ReplaceAll(t.Context(), wanted); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"a": "new", "a.saved": "new", "b": "new", "b.saved": "new", "link": "new"}
	if diff := cmp.Diff(want, read()); diff != "" {
		t.Errorf("after the replacement (-want +got):\n%s", diff)
	}
	if fi, err := os.Lstat(filepath.Join(dir, "a")); err != nil || fi.Mode() != 0o640 {
		t.Errorf("the replaced image: %v, %v", fi.Mode(), err)
	}
	if target, err := os.Readlink(link); err != nil || target != filepath.Join(dir, "a") {
		t.Errorf("the link leads to %q, %v", target, err)
	}
}
