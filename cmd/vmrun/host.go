package main

import (
	"fmt"
	"os"

	"github.com/vmrun/vmrun/netsetup"
	"github.com/vmrun/vmrun/vm"
)

// detectHost finds out about this machine. What is re-executed is the file that
// this process runs.
func detectHost() (vm.Host, error) {
	executable, err := os.Executable()
	if err != nil {
		return vm.Host{}, fmt.Errorf("find own executable: %w", err)
	}
	return vm.DetectHost(executable, os.Environ())
}

// networkHost is the part of the host that networks are set up on.
func networkHost(h vm.Host) netsetup.Host {
	return netsetup.Host{Executable: h.Executable, Runtime: h.Dirs.Runtime, State: h.Dirs.State, Log: h.Log}
}
