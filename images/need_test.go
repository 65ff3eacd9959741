package images

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// needProgram finds a program that a test can't do without.
func needProgram(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		skip(t, err)
	}
	return path
}

// skip skips a test for want of something of QEMU's, and fails it where
// VMRUN_TEST_MUST says that nothing of that is wanting.
func skip(t *testing.T, why error) {
	t.Helper()
	must := strings.FieldsFunc(os.Getenv("VMRUN_TEST_MUST"), func(r rune) bool { return r == ',' || r == ' ' })
	if slices.Contains(must, "qemu") || slices.Contains(must, "all") {
		t.Fatal(why)
	}
	t.Skip(why)
}
