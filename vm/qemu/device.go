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
	args := slices.Concat(
		Chardev{ID: "con", FD: c.Console}.Args(), []string{"-serial", "chardev:con"},
		Chardev{ID: "qmp", FD: c.QMP}.Args(), []string{"-mon", option(pair{"chardev", "qmp"}, pair{"mode", "control"})},
	)
	if c.Exit == "" {
		return args
	}
	port := Device{Driver: "virtserialport", props: []pair{{"chardev", "exit"}, {"name", ExitPort}}}
	return slices.Concat(args, Chardev{ID: "exit", FD: c.Exit}.Args(), c.virtio("serial").Args(), port.Args())
}

// devices are those that every machine has: a source of randomness, and the
// device by which a guest tells that it panicked. Guests find the latter by
// ACPI, which microvm is without.
func (c Config) devices() []string {
	args := append([]string{"-object", option(pair{"", "rng-builtin"}, pair{"id", "rng0"})},
		c.virtio("rng", []pair{{"rng", "rng0"}}).Args()...)
	if c.Machine == MicroVM {
		return args
	}
	return append(args, Device{Driver: "pvpanic"}.Args()...)
}
