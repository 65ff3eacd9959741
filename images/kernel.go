package images

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// NoKernelError says that no kernel was found, and what to do about it.
type NoKernelError struct {
	Dirs       []string // where there was none
	Unreadable []string // kernels that are there, but not for this user
}

// KernelPackage is the Debian package of the smallest kernel that is enough.
const KernelPackage = "linux-image-cloud-amd64"

func (e *NoKernelError) Error() string {
	if len(e.Unreadable) > 0 {
		return fmt.Sprintf("find kernel: not allowed to read %s", strings.Join(e.Unreadable, ", "))
	}
	return fmt.Sprintf("find kernel: no vmlinuz-* in %s: install one, on Debian the package %s",
		strings.Join(e.Dirs, ", "), KernelPackage)
}

// FindKernel returns the newest readable kernel, by the version in its name
// vmlinuz-VERSION, of all dirs. Folders may be missing. Where there is no
// kernel the error is a *NoKernelError.
func FindKernel(dirs ...string) (string, error) {
	missing := &NoKernelError{Dirs: dirs}
	var best, bestVersion string
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
			return "", fmt.Errorf("find kernel: %w", err)
		}
		for _, e := range entries {
			version, ok := strings.CutPrefix(e.Name(), "vmlinuz-")
			if !ok || version == "" || best != "" && compareVersions(version, bestVersion) <= 0 {
				continue
			}
			path := filepath.Join(dir, e.Name())
			if fi, err := os.Stat(path); err != nil || !fi.Mode().IsRegular() {
				continue // a dangling link
			}
			if unix.Access(path, unix.R_OK) != nil {
				missing.Unreadable = append(missing.Unreadable, path)
				continue
			}
			best, bestVersion = path, version
		}
	}
	if best == "" {
		return "", missing
	}
	return best, nil
}

// compareVersions orders kernel versions: runs of digits by value, all else as
// text, and a release candidate before its release.
func compareVersions(a, b string) int {
	// A byte below all others, and below the end of a version.
	before := strings.NewReplacer("-rc", "\x00rc", "~", "\x00")
	a, b = before.Replace(a), before.Replace(b)
	for a != "" && b != "" {
		var x, y string
		x, a = cutRun(a)
		y, b = cutRun(b)
		if c := compareRuns(x, y); c != 0 {
			return c
		}
	}
	return cmp.Compare(rank(a), rank(b))
}

// rank places the rest of a version against the end of another that is its start.
func rank(rest string) int {
	switch {
	case rest == "":
		return 0
	case rest[0] == 0:
		return -1
	default:
		return 1
	}
}

// cutRun splits the longest start of s that is all digits or all other text.
func cutRun(s string) (run, rest string) {
	i := 1
	for i < len(s) && isDigit(s[i]) == isDigit(s[0]) {
		i++
	}
	return s[:i], s[i:]
}

// compareRuns compares two runs, numbers of any length by value.
func compareRuns(x, y string) int {
	if isDigit(x[0]) && isDigit(y[0]) {
		x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
		if c := cmp.Compare(len(x), len(y)); c != 0 {
			return c
		}
	}
	return cmp.Compare(x, y)
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
