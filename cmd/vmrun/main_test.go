package main

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

const noRaceSleep = "atexit_sleep_ms=0"

// TestMain makes the test binary stand in for vmrun and for QEMU: it is copied
// under their names to the front of PATH.
func TestMain(m *testing.M) {
	// With -race each of the many processes would wait a second at its end.
	os.Setenv("GORACE", noRaceSleep)
	testscript.Main(m, map[string]func(){
		"vmrun":              main,
		"qemu-system-x86_64": fakeQEMUMain,
	})
}
