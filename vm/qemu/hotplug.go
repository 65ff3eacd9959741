package qemu

import (
	"fmt"
	"strconv"
)

// HotPorts is how many devices can be attached to a running q35: PCI Express has
// a port for each, which must be there from the start. A pc has room on its bus.
const HotPorts = 4

// hotPorts are the ports for devices to come, all on one slot.
func (c Config) hotPorts() []string {
	if c.Machine != Q35 {
		return nil
	}
	const slot = "0x10"
	var args []string
	for n := range HotPorts {
		props := []pair{{"id", hotPort(n)}, {"bus", "pcie.0"}, {"chassis", strconv.Itoa(n + 1)}, {"addr", fmt.Sprintf("%s.%d", slot, n)}}
		if n == 0 {
			props = append(props, pair{"multifunction", "on"})
		}
		args = append(args, Device{Driver: "pcie-root-port", props: props}.Args()...)
	}
	return args
}

func hotPort(n int) string { return fmt.Sprintf("hot%d", n) }

// Slot is a place for a device that is attached to a running machine.
type Slot struct {
	Machine string // Q35 or PC
	Port    int    // below HotPorts; counts on q35 alone
	Addr    string // on a pc's bus, as 6.0; "": any that is free
}

// device is what QMP's device_add takes.
func (s Slot) device(driver, id string) map[string]any {
	d := map[string]any{"driver": driver, "id": id}
	if s.Machine == Q35 {
		d["bus"] = hotPort(s.Port)
	}
	if s.Addr != "" {
		d["addr"] = s.Addr
	}
	return d
}

// Disk is the argument of device_add for a disk over a node of the block graph.
func (s Slot) Disk(id, node string) map[string]any {
	d := s.device("virtio-blk-pci", id)
	d["drive"] = node
	return d
}

// NIC is the argument of device_add for a network card over the netdev of the
// same id.
func (s Slot) NIC(id string, nic NIC) map[string]any {
	d := s.device("virtio-net-pci", id)
	d["netdev"], d["mac"], d["romfile"] = id, nic.MAC.String(), ""
	for _, p := range nic.mtu() {
		d[p.key] = nic.MTU
	}
	if nic.Queues > 1 {
		d["mq"], d["vectors"] = true, 2*nic.Queues+2
	}
	return d
}

// TapOptions is the argument of netdev_add for a TAP whose files QEMU has got under
// these names, one per queue.
func TapOptions(id string, names []string) map[string]any {
	o := map[string]any{"type": "tap", "id": id}
	if len(names) == 1 {
		o["fd"] = names[0]
		return o
	}
	fds := names[0]
	for _, n := range names[1:] {
		fds += ":" + n
	}
	o["fds"] = fds
	return o
}

// Options is the argument of blockdev-add for the node.
func (b Blockdev) Options() map[string]any {
	o := map[string]any{"driver": b.Driver, "node-name": b.Node}
	for key, value := range map[string]string{"filename": b.Filename, "file": b.File, "backing": b.Backing} {
		if value != "" {
			o[key] = value
		}
	}
	if b.ReadOnly {
		o["read-only"] = true
	} else {
		o["discard"] = "unmap"
	}
	if b.NoFlush {
		o["cache"] = map[string]any{"no-flush": true}
	}
	return o
}
