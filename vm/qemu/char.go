package qemu

// Chardev is a connected socket that QEMU inherits.
type Chardev struct {
	ID string
	FD FD
}

// Args makes the socket known to QEMU under its id.
func (c Chardev) Args() []string {
	return []string{"-chardev", option(pair{"", "socket"}, pair{"id", c.ID}, pair{"fd", string(c.FD)})}
}
