// Package images prepares what a machine boots from: the stack of image files
// behind each disk, the kernel of the host, and the initramfs of the micro
// guest, a machine whose only program is vmrun itself.
//
// The package starts no machine and knows no QEMU option. It hands out open
// files, because QEMU may run as a user who could not open them by name.
package images
