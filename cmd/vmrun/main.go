// Command vmrun runs virtual machines that are described by TOML profiles, on
// networks that exist for as long as they are needed.
package main

import (
	"context"
	"math"
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/images/guest"
)

// firstInherited is the first descriptor after the standard ones.
const firstInherited = 3

func main() {
	// In the micro guest this binary is /init.
	if guest.IsInit() {
		guest.Main()
	}
	// An exit code of 2 means bad usage, so a panic must not end with it.
	debug.SetTraceback("crash")
	// What our parent left open is not for our children, which may outlive us
	// both. Kernels before 5.11 can't do this, and go without.
	unix.CloseRange(firstInherited, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	os.Exit(execute(context.Background(), os.Args[1:]))
}
