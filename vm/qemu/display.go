package qemu

// What a screen is seen through.
const (
	VNC   = "vnc"
	SPICE = "spice"
)

// display gives the machine a screen, with a pointer that is where the viewer's
// is. Nothing listens: viewers are handed over by the QMP command add_client,
// and have to know the password that set_password sets.
func (c Config) display() []string {
	var server []string
	switch c.Display {
	case VNC:
		server = []string{"-vnc", option(pair{"", "none"}, pair{"password", "on"})}
	case SPICE:
		server = []string{"-spice", option(pair{"port", "0"})}
	default:
		return nil
	}
	server = append(server, Device{Driver: "virtio-vga"}.Args()...)
	return append(server, Device{Driver: "virtio-tablet-pci"}.Args()...)
}
