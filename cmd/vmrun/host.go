package main

import (
	"fmt"
	"os"
	"sync"

	"github.com/vmrun/vmrun/netsetup"
	"github.com/vmrun/vmrun/vm"
)

// locateHost finds out where VMs and networks are on this machine, detectHost
// also what it takes to launch them: each once for all parts of a command.
var (
	locateHost = sync.OnceValues(func() (vm.Host, error) { return thisHost(vm.LocateHost) })
	detectHost = sync.OnceValues(func() (vm.Host, error) { return thisHost(vm.DetectHost) })
)

// thisHost is this machine, with the file that this process runs as what is
// re-executed.
func thisHost(find func(executable string, env []string) (vm.Host, error)) (vm.Host, error) {
	executable, err := os.Executable()
	if err != nil {
		return vm.Host{}, fmt.Errorf("find own executable: %w", err)
	}
	h, err := find(executable, os.Environ())
	h.Version = buildVersion().String()
	return h, err
}

// networkHost is the part of the host that networks are set up on.
func networkHost(h vm.Host) netsetup.Host { return h.NetworkHost() }
