package vm

import (
	"errors"
	"fmt"

	"github.com/vmrun/vmrun/netsetup"
	"github.com/vmrun/vmrun/profiles"
)

// NetworkSpec is a profile's network in netsetup's terms.
func NetworkSpec(n profiles.Network) netsetup.Spec { return networkSpec(n) }

// NetworkHost is the part of the host that networks are set up on.
func (h Host) NetworkHost() netsetup.Host {
	return netsetup.Host{Executable: h.Executable, Runtime: h.Dirs.Runtime, State: h.Dirs.State,
		RootRuntime: h.Dirs.RootRuntime, Version: h.Version, Log: h.Log, Firewall: h.Firewall}
}

// mayUse tells why a NIC's network is out of this process's reach: nil if it
// may set networks up itself, or root has opened this one to it.
func (h Host) mayUse(n profiles.Network, spec netsetup.Spec) error {
	if h.Privileged {
		return nil
	}
	check := h.CheckOpened
	if check == nil {
		check = func(s netsetup.Spec) error { return netsetup.CheckOpened(h.NetworkHost(), s) }
	}
	err := check(spec)
	if errors.Is(err, netsetup.ErrNotOpened) {
		return errors.New(whyRoot(n))
	}
	if err != nil {
		return fmt.Errorf("use network %s: %w", n.Name, err)
	}
	return nil
}
