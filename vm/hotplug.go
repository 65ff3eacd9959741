package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/vmrun/vmrun/images"
	"github.com/vmrun/vmrun/profiles"
	"github.com/vmrun/vmrun/qmp"
	"github.com/vmrun/vmrun/vm/qemu"
)

// Attachment is a device that was attached to a running machine.
type Attachment struct {
	ID   string `json:"id"`   // disk2, nic1: the name by which it is detached
	Kind string `json:"kind"` // disk or nic
	What string `json:"what"` // the image's path, or the network's name
	Link string `json:"link,omitempty"`
}

// ErrNotAttached says that a machine has no such device that can be detached:
// those of the profile stay.
var ErrNotAttached = errors.New("no such device was attached")

// hotplug is what was attached to a running machine.
type hotplug struct {
	mu      sync.Mutex // held while something is attached, detached or saved
	devices []*hotDevice
	gone    bool // the machine has ended: nothing is attached any more
}

type hotDevice struct {
	Attachment
	index  int // among those of its kind, the profile's included
	slot   qemu.Slot
	remove undo         // of what is behind the device, once the guest has let go of it
	leave  func() error // closes what is not QEMU's, when the machine ends

	disk    *images.DiskSpec // nil: no disk
	written writtenDisk
	wanted  profiles.NIC // of a card that is yet to be planned
	nic     *NIC         // nil: no card
	port    port
}

// Kinds of attachments.
const (
	kindDisk = "disk"
	kindNIC  = "nic"
)

// release is how long a guest may take to let go of a device.
const release = 10 * time.Second

// newSlot finds a place for one more device.
func (i *Instance) newSlot() (qemu.Slot, error) {
	s := qemu.Slot{Machine: i.plan.Machine}
	switch s.Machine {
	case qemu.MicroVM:
		return s, errors.New("a microvm takes no devices while it runs")
	case qemu.PC:
		return s, nil
	}
	for ; s.Port < qemu.HotPorts; s.Port++ {
		if !slices.ContainsFunc(i.hot.devices, func(d *hotDevice) bool { return d.slot.Port == s.Port }) {
			return s, nil
		}
	}
	return s, fmt.Errorf("all %d places for devices are taken: detach one first", qemu.HotPorts)
}

// number gives a device the lowest number of its kind that no other has, those of
// the profile included.
func (i *Instance) number(d *hotDevice) {
	d.index = len(i.plan.Disks)
	if d.Kind == kindNIC {
		d.index = len(i.plan.NICs)
	}
	for ; ; d.index++ {
		d.ID = d.Kind + strconv.Itoa(d.index)
		if i.attached(d.ID) == nil {
			return
		}
	}
}

func (i *Instance) attached(id string) *hotDevice {
	for _, d := range i.hot.devices {
		if d.ID == id {
			return d
		}
	}
	return nil
}

// attach adds a device at a free place.
func (i *Instance) attach(ctx context.Context, d *hotDevice) (Attachment, error) {
	i.hot.mu.Lock()
	defer i.hot.mu.Unlock()
	err := errors.New("the machine has ended")
	if !i.hot.gone {
		d.slot, err = i.newSlot()
	}
	if err == nil {
		i.number(d)
		err = i.add(ctx, d)
	}
	if err != nil {
		return Attachment{}, fmt.Errorf("attach %s %s to %s: %w", d.Kind, d.What, i.plan.Name, err)
	}
	return d.Attachment, nil
}

// add adds a device that has its place and its name. Where that fails nothing of it
// is left.
func (i *Instance) add(ctx context.Context, d *hotDevice) error {
	add := i.addDisk
	if d.Kind == kindNIC {
		add = i.addNIC
	}
	if err := add(ctx, d); err != nil {
		return errors.Join(err, d.remove.run())
	}
	i.hot.devices = append(i.hot.devices, d)
	return nil
}

// Attachments are the devices that were attached, in that order.
func (i *Instance) Attachments() []Attachment {
	i.hot.mu.Lock()
	defer i.hot.mu.Unlock()
	var all []Attachment
	for _, d := range i.hot.devices {
		all = append(all, d.Attachment)
	}
	return all
}

// Detach takes a device away that was attached, and undoes all that its
// attachment did. The guest has to let go of it: where it does not, in 10 s, the device
// stays. The error wraps ErrNotAttached where there is none of the id.
func (i *Instance) Detach(ctx context.Context, id string) error {
	i.hot.mu.Lock()
	defer i.hot.mu.Unlock()
	d := i.attached(id)
	if d == nil {
		return fmt.Errorf("detach %s from %s: %w", id, i.plan.Name, ErrNotAttached)
	}
	if err := i.unplug(ctx, id); err != nil {
		return fmt.Errorf("detach %s from %s: %w", id, i.plan.Name, err)
	}
	i.hot.devices = slices.DeleteFunc(i.hot.devices, func(o *hotDevice) bool { return o == d })
	if err := d.remove.run(); err != nil {
		return fmt.Errorf("detach %s from %s: %w", id, i.plan.Name, err)
	}
	return nil
}

// unplug asks the guest for a device and waits until it is gone.
func (i *Instance) unplug(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, release, errors.New("the guest does not let go of it; does it run, and does it use it?"))
	defer cancel()
	events, stop := i.QMP().Subscribe()
	defer stop()
	err := i.QMP().Run(ctx, "device_del", map[string]string{"id": id}, nil)
	if refused, ok := errors.AsType[*qmp.Error](err); ok && refused.Class == "DeviceNotFound" {
		return nil // the guest has let go of it since it was last asked
	}
	if err != nil {
		return err
	}
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return qmp.ErrClosed
			}
			var data struct{ Device string }
			if json.Unmarshal(e.Data, &data) != nil || data.Device != id {
				continue
			}
			switch e.Name {
			case "DEVICE_DELETED":
				return nil
			case "DEVICE_UNPLUG_GUEST_ERROR":
				return errors.New("the guest refuses to let go of it")
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// leaveHot leaves the networks of attached cards, all at once, when the machine
// ends. QEMU takes the rest with it.
func (i *Instance) leaveHot() error {
	i.hot.mu.Lock()
	defer i.hot.mu.Unlock()
	i.hot.gone = true
	errs := make([]error, len(i.hot.devices))
	var all sync.WaitGroup
	for n, d := range i.hot.devices {
		if d.leave != nil {
			all.Go(func() { errs[n] = d.leave() })
		}
	}
	all.Wait()
	i.hot.devices = nil
	return errors.Join(errs...)
}

// give hands a file to QEMU under a name, for one command that takes it.
func (i *Instance) give(ctx context.Context, name string, f *os.File) error {
	return i.QMP().RunWithFile(ctx, "getfd", map[string]string{"fdname": name}, nil, f)
}
