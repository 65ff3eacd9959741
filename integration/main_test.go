package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/vmrun/vmrun/integration/internal/sandbox"
)

// binaryVariable names the vmrun under test; without it, the tests build one.
const binaryVariable = "VMRUN_TEST_BINARY"

func TestMain(m *testing.M) {
	sandbox.Main()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Getenv(binaryVariable) != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "vmrun-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	// Other users run it, and fill its cache, in the tests.
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	binary := filepath.Join(dir, "vmrun")
	build := exec.Command("go", "build", "-o", binary, "../cmd/vmrun")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintf(os.Stderr, "build vmrun: %v\n", err)
		return 1
	}
	os.Setenv(binaryVariable, binary)
	return m.Run()
}
