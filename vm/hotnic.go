package vm

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/vmrun/vmrun/profiles"
	"github.com/vmrun/vmrun/vm/qemu"
)

// AttachNIC gives a running machine one more network card, on a network of its
// profile or a built-in one but user. It is taken away by Detach, or with the
// machine. Ports of the host are not forwarded to it.
func (i *Instance) AttachNIC(ctx context.Context, n profiles.NIC) (Attachment, error) {
	return i.attach(ctx, &hotDevice{Attachment: Attachment{Kind: kindNIC, What: n.Network}, wanted: n})
}

// addNIC joins a card's network and gives the guest the card.
func (i *Instance) addNIC(ctx context.Context, d *hotDevice) error {
	if d.nic == nil {
		nic, err := i.planHotNIC(d.wanted, d.index)
		if err != nil {
			return err
		}
		d.nic = &nic
	}
	join := i.join
	if join == nil {
		join = attach
	}
	p, err := join(ctx, i.host.NetworkHost(), *d.nic.Spec, *d.nic.Port)
	if err != nil {
		return err
	}
	d.port, d.Link = p, p.Link()
	unlist := i.listHotNIC(*d.nic, d.ID, p)
	unwatch := i.watchHotNIC(*d.nic, d.ID, p)
	d.leave = func() error {
		unwatch()
		return p.Close()
	}
	d.remove.push(func() error {
		unlist()
		return d.leave()
	})
	return i.addCard(ctx, d)
}

// listHotNIC tells others of a card, until the returned function is called.
func (i *Instance) listHotNIC(nic NIC, id string, p port) (unlist func()) {
	status := newNICStatus(nic, p)
	status.ID = id
	i.note(func(s *State) { s.Attached = append(s.Attached, status) })
	return func() {
		i.note(func(s *State) {
			s.Attached = slices.DeleteFunc(s.Attached, func(n NICStatus) bool { return n.ID == id })
		})
	}
}

// watchHotNIC watches for the address that the guest uses on a card, until the
// returned function is called. Others are told of it where the card is listed.
func (i *Instance) watchHotNIC(nic NIC, id string, p port) (stop func()) {
	wait, err := i.watchLink(p.Link(), nic.MAC, new(hearing))
	if err != nil {
		i.log.Debug("the guest's address is not seen", "network", nic.Network, "nic", id, "cause", err)
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	watching.Go(func() {
		addr, err := wait(ctx)
		if err != nil {
			return
		}
		i.log.Debug("the guest has an address", "network", nic.Network, "nic", id, "ip", addr)
		i.note(func(s *State) {
			for n := range s.Attached {
				if s.Attached[n].ID == id {
					s.Attached[n].Seen = addr
				}
			}
		})
	})
	return func() {
		cancel()
		watching.Wait()
	}
}

// network is one that a running machine can get a card on, and user.
func (p *Plan) network(name string) (profiles.Network, bool) {
	if n, ok := p.Networks[name]; ok {
		return n, true
	}
	return profiles.Builtin(name)
}

// planHotNIC plans a card as NewPlan would.
func (i *Instance) planHotNIC(n profiles.NIC, index int) (NIC, error) {
	network, ok := i.plan.network(n.Network)
	switch {
	case !ok:
		return NIC{}, fmt.Errorf("the profile defines no network %q", n.Network)
	case network.Mode == profiles.User:
		return NIC{}, fmt.Errorf("network %s is in mode user, whose cards come with the machine", n.Network)
	}
	if err := i.host.mayUse(network, networkSpec(network)); err != nil {
		return NIC{}, &HostError{NeedPrivilege, err}
	}
	return newNIC(i.plan.Name, index, n, network, i.host)
}

// addCard gives QEMU the files of a TAP and the guest a card over it.
func (i *Instance) addCard(ctx context.Context, d *hotDevice) error {
	var names []string
	added := false
	defer func() {
		if !added {
			i.takeBack(names)
		}
	}()
	for queue, f := range d.port.Files() {
		name := fmt.Sprintf("%s.queue%d", d.ID, queue)
		if err := i.give(ctx, name, f); err != nil {
			return err
		}
		names = append(names, name)
	}
	if len(names) == 0 {
		return fmt.Errorf("network %s gave no TAP", d.nic.Network)
	}
	if err := i.QMP().Run(ctx, "netdev_add", qemu.TapOptions(d.ID, names), nil); err != nil {
		return err
	}
	added = true
	d.remove.push(i.undoCommand("netdev_del", map[string]any{"id": d.ID}))
	card := qemu.NIC{MAC: d.nic.MAC.HardwareAddr(), MTU: d.port.MTU(), Queues: d.nic.Queues}
	return i.QMP().Run(ctx, "device_add", d.slot.NIC(d.ID, card), nil)
}

// takeBack has QEMU close files that no command has taken: a copy of a TAP's
// would keep the TAP alive. One that was taken is not there any more.
func (i *Instance) takeBack(names []string) {
	for _, name := range names {
		_ = i.QMP().Run(context.Background(), "closefd", map[string]string{"fdname": name}, nil)
	}
}
