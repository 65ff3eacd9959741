package vm

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"github.com/vmrun/vmrun/netsetup"
)

// port is a NIC's end on a network: a *netsetup.Port, or in tests another.
type port interface {
	Files() []*os.File
	IP() netip.Addr
	Subnet() netip.Prefix
	Gateway() netip.Addr
	Link() string
	Bridge() string
	MTU() int
	Members() int
	Close() error
}

func attach(ctx context.Context, h netsetup.Host, spec netsetup.Spec, p netsetup.PortSpec) (port, error) {
	attached, err := netsetup.Attach(ctx, h, spec, p)
	if err != nil {
		return nil, err
	}
	return attached, nil
}

// joinNetworks attaches each NIC to its network.
func (l *launch) joinNetworks(ctx context.Context) error {
	l.disconnect = sync.OnceValue(l.connections.run)
	l.undo.push(l.disconnect)
	l.connections.push(l.leaveNetworks)
	join := l.options.attach
	if join == nil {
		join = attach
	}
	h := l.host.NetworkHost()
	for _, nic := range l.plan.NICs {
		var p port
		if nic.Spec != nil {
			var err error
			if p, err = join(ctx, h, *nic.Spec, *nic.Port); err != nil {
				return err
			}
		}
		l.ports = append(l.ports, p)
		if p != nil && len(p.Files()) != nic.Queues {
			return fmt.Errorf("join network %s: got %d queues instead of %d", nic.Network, len(p.Files()), nic.Queues)
		}
	}
	return nil
}

// leaveNetworks detaches all NICs at once, as the kernel takes its time to
// remove a device.
func (l *launch) leaveNetworks() error {
	errs := make([]error, len(l.ports))
	var all sync.WaitGroup
	for i, p := range l.ports {
		if p != nil {
			all.Go(func() { errs[i] = p.Close() })
		}
	}
	all.Wait()
	return errors.Join(errs...)
}

// startLeaving leaves the networks of a guest that has ended while QEMU still
// closes its files: the kernel takes its time for both. Close waits for it and
// has its errors.
func (l *launch) startLeaving() {
	if l.plan.endsWithGuest() {
		go l.disconnect()
	}
}

// forwardPorts opens the ports of the host that lead to the guest. In user mode
// QEMU does.
func (l *launch) forwardPorts(context.Context) error {
	for i, nic := range l.plan.NICs {
		if l.ports[i] == nil {
			continue
		}
		for _, f := range nic.Forwards {
			// A guest on a network of libvirt's is told its address later.
			if !l.ports[i].IP().IsValid() && nic.Spec.Libvirt == "" {
				return fmt.Errorf("forward port %d: network %s does not know the guest's address", f.HostPort, nic.Network)
			}
			fw, err := newForwarding(f, l.ports[i].IP, l.host.log())
			if err != nil {
				return err
			}
			// Closed before the network is left: afterwards the guest's address
			// would be looked for outside.
			l.connections.push(fw.Close)
		}
	}
	return nil
}

// NICStatus is a NIC of a running virtual machine.
type NICStatus struct {
	ID      string       `json:"id,omitempty"` // nic1: the name by which an attached card is detached; "": one of the profile's
	Network string       `json:"network"`
	Mode    string       `json:"mode"`
	MAC     netsetup.MAC `json:"mac"`
	IP      netip.Addr   `json:"ip,omitzero"`      // reserved; zero: not vmrun's to give
	Seen    netip.Addr   `json:"seen,omitzero"`    // that the guest was seen to use
	Subnet  netip.Prefix `json:"subnet,omitzero"`  // zero: unknown, or user mode
	Gateway netip.Addr   `json:"gateway,omitzero"` //
	Link    string       `json:"link,omitempty"`   // the TAP's name; "": user mode
	Bridge  string       `json:"bridge,omitempty"` //
	Members int          `json:"members"`          // of the network when this NIC joined, with it; 0: user mode
}

// Address is the NIC's address as far as it is known: what the guest uses, else
// what it is to get; zero where neither is known.
func (n NICStatus) Address() netip.Addr {
	if n.Seen.IsValid() {
		return n.Seen
	}
	return n.IP
}

func (l *launch) status() []NICStatus {
	var nics []NICStatus
	for i, nic := range l.plan.NICs {
		nics = append(nics, newNICStatus(nic, l.ports[i]))
	}
	return nics
}

// newNICStatus is a card's at its port; nil: it is QEMU's own.
func newNICStatus(nic NIC, p port) NICStatus {
	s := NICStatus{Network: nic.Network, Mode: string(nic.Mode), MAC: nic.MAC}
	if p != nil {
		s.IP, s.Subnet, s.Gateway = p.IP(), p.Subnet(), p.Gateway()
		s.Link, s.Bridge, s.Members = p.Link(), p.Bridge(), p.Members()
	}
	return s
}
