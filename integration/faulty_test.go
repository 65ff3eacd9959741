package integration

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// faultyVariable names a vmrun that stops where a test wants it to: see
// netsetup/fault_on.go.
const faultyVariable = "VMRUN_TEST_FAULTY_BINARY"

// buildFaulty builds that vmrun, once for all sandboxes.
func buildFaulty(t *testing.T) {
	t.Helper()
	if os.Getenv(faultyVariable) != "" {
		return
	}
	binary := filepath.Join(t.TempDir(), "vmrun")
	if err := os.Chmod(filepath.Dir(binary), 0o755); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-tags", "vmrun_fault", "-o", binary, "../cmd/vmrun")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build vmrun: %v\n%s", err, out)
	}
	t.Setenv(faultyVariable, binary)
}

// The vmrun that people get can't be stopped that way.
func TestNoFaultPointsInBinary(t *testing.T) {
	buildFaulty(t)
	for variable, want := range map[string]bool{binaryVariable: false, faultyVariable: true} {
		binary, err := os.ReadFile(os.Getenv(variable))
		if err != nil {
			t.Fatal(err)
		}
		if got := bytes.Contains(binary, []byte("VMRUN_FAULT")); got != want {
			t.Errorf("the binary of %s knows VMRUN_FAULT: %v, want %v", variable, got, want)
		}
	}
}
