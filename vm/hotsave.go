package vm

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/vmrun/vmrun/images"
	"github.com/vmrun/vmrun/vm/qemu"
)

// SavedDevice is a device that was attached to a machine when a snapshot of it was
// made. The guest finds it at the same place again.
type SavedDevice struct {
	ID   string           `json:"id"`
	Port int              `json:"port"`           // of a q35
	Addr string           `json:"addr,omitempty"` // on a pc's bus
	Disk *images.DiskSpec `json:"disk,omitempty"` // nil: no disk
	NIC  *NIC             `json:"nic,omitempty"`  // nil: no card
}

// savedDevices describes what the guest has of the attached devices. One that it has
// let go of after Detach gave up waiting is not there any more.
func (i *Instance) savedDevices(ctx context.Context) ([]SavedDevice, error) {
	if len(i.hot.devices) == 0 {
		return nil, nil
	}
	places, err := i.places(ctx)
	if err != nil {
		return nil, err
	}
	var all []SavedDevice
	for _, d := range i.hot.devices {
		addr, there := places[d.ID]
		if !there {
			continue
		}
		s := SavedDevice{ID: d.ID, Port: d.slot.Port, Disk: d.disk}
		if d.slot.Machine == qemu.PC {
			s.Addr = addr
		}
		if d.nic != nil {
			nic, pinned := *d.nic, *d.nic.Port
			pinned.IP = d.port.IP() // the guest goes on with it
			nic.Port, s.NIC = &pinned, &nic
		}
		all = append(all, s)
	}
	return all, nil
}

// peripherals is where QEMU keeps devices that have an id.
const peripherals = "/machine/peripheral/"

// places are the addresses on their buses of the attached devices that are there.
// query-pci would tell of none behind a bridge that firmware has not come to yet.
func (i *Instance) places(ctx context.Context) (map[string]string, error) {
	var there []struct{ Name string }
	if err := i.QMP().Run(ctx, "qom-list", map[string]string{"path": peripherals}, &there); err != nil {
		return nil, err
	}
	all := map[string]string{}
	for _, p := range there {
		if i.attached(p.Name) == nil {
			continue
		}
		var addr int // a slot in five bits and a function in three
		property := map[string]string{"path": peripherals + p.Name, "property": "addr"}
		if err := i.QMP().Run(ctx, "qom-get", property, &addr); err != nil {
			return nil, err
		}
		all[p.Name] = fmt.Sprintf("%x.%x", addr>>3, addr&7)
	}
	return all, nil
}

// saveHotDisks copies the content of disks that are attached.
func (i *Instance) saveHotDisks(ctx context.Context, s *Snapshot) error {
	for _, saved := range s.Devices {
		if saved.Disk == nil {
			continue
		}
		if err := s.saveDisk(ctx, *saved.Disk, i.attached(saved.ID).written, saved.ID); err != nil {
			return err
		}
	}
	return nil
}

// bringBack gives a machine that waits for its memory the CPUs and the devices that
// it had.
func (i *Instance) bringBack(ctx context.Context, r Restore) error {
	i.hot.mu.Lock()
	defer i.hot.mu.Unlock()
	if r.CPUs > i.plan.CPUs {
		if err := i.plugCPUs(ctx, r.CPUs); err != nil {
			return fmt.Errorf("bring back CPUs: %w", err)
		}
	}
	for _, saved := range r.Devices {
		if err := i.add(ctx, saved.device(i.plan.Machine)); err != nil {
			return fmt.Errorf("bring back %s: %w", saved.ID, err)
		}
	}
	return nil
}

// device is the device that is attached again, with its name and at its place.
func (s SavedDevice) device(machine string) *hotDevice {
	var d *hotDevice
	if s.Disk != nil {
		d = newHotDisk(*s.Disk)
	} else {
		d = &hotDevice{Attachment: Attachment{Kind: kindNIC, What: s.NIC.Network}, nic: s.NIC}
	}
	d.ID, d.slot = s.ID, qemu.Slot{Machine: machine, Port: s.Port, Addr: s.Addr}
	return d
}

// withContent is the device as it is brought back: with an overlay that begins with
// the snapshot's.
func (s SavedDevice) withContent(dir string) SavedDevice {
	if s.Disk != nil && !s.Disk.Keep {
		disk := *s.Disk
		disk.Overlay = filepath.Join(dir, s.ID)
		s.Disk = &disk
	}
	return s
}
