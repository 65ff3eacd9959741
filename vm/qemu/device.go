package qemu

import "slices"

// Device is something that the guest finds on a bus.
type Device struct {
	Driver string
	props  []pair
}

// Args plugs the device in.
func (d Device) Args() []string {
	return []string{"-device", option(append([]pair{{"", d.Driver}}, d.props...)...)}
}

// virtio is a virtio device on the bus that the machine has for them: PCI, or
// virtio-mmio.
func (c Config) virtio(kind string, props ...[]pair) Device {
	bus := "pci"
	if c.Machine == MicroVM {
		bus = "device"
	}
	return Device{Driver: "virtio-" + kind + "-" + bus, props: slices.Concat(props...)}
}

// chardevs are the sockets and what is behind them.
func (c Config) chardevs() []string {
	return slices.Concat(
		Chardev{ID: "con", FD: c.Console}.Args(), []string{"-serial", "chardev:con"},
		Chardev{ID: "qmp", FD: c.QMP}.Args(), []string{"-mon", option(pair{"chardev", "qmp"}, pair{"mode", "control"})},
	)
}

// ports are a virtio-serial bus with its ports. They come last, so that other
// devices keep their places on the PCI bus, after which guests name their NICs.
func (c Config) ports() []string {
	if len(c.Ports) == 0 {
		return nil
	}
	args := c.virtio("serial").Args()
	for _, p := range c.Ports {
		port := Device{Driver: "virtserialport", props: []pair{{"chardev", p.ID}, {"name", p.Name}}}
		args = slices.Concat(args, Chardev{ID: p.ID, FD: p.FD}.Args(), port.Args())
	}
	return args
}

// Balloon is the id of the device by which a guest gives memory back: what it
// does not use, by itself, and more where it is asked to.
const Balloon = "balloon0"

// devices are those that every machine has: a source of randomness, a balloon,
// and the device by which a guest tells that it panicked. Guests find the latter by
// ACPI, which microvm is without.
func (c Config) devices() []string {
	args := append([]string{"-object", option(pair{"", "rng-builtin"}, pair{"id", "rng0"})},
		c.virtio("rng", []pair{{"rng", "rng0"}}).Args()...)
	args = append(args, c.virtio("balloon", []pair{{"id", Balloon}, {"deflate-on-oom", "on"}, {"free-page-reporting", "on"}}).Args()...)
	if c.Machine == MicroVM {
		return args
	}
	return append(args, Device{Driver: "pvpanic"}.Args()...)
}
