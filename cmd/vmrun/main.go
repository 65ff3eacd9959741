// Command vmrun runs virtual machines that are described by TOML profiles, on
// networks that exist for as long as they are needed.
package main

import (
	"context"
	"os"
	"runtime/debug"

	"github.com/vmrun/vmrun/images/guest"
)

func main() {
	// In the micro guest this binary is /init.
	if guest.IsInit() {
		guest.Main()
	}
	// An exit code of 2 means bad usage, so a panic must not end with it.
	debug.SetTraceback("crash")
	os.Exit(execute(context.Background(), os.Args[1:]))
}
