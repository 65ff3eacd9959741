package qemu

import (
	"fmt"
	"slices"
	"strconv"
)

// Image is an open disk image.
type Image struct {
	FD     FD
	Format string // a block driver: qcow2 or raw
	Device bool   // a block device of the host and not a file
}

// Disk is one virtio disk: the image that the guest writes to, opened for
// reading and writing, then the chain of its backing images, opened for reading.
type Disk struct {
	Layers    []Image
	Throwaway bool // what is written is not kept: the guest's flushes are not waited for
}

// FDSet makes an inherited file known as /dev/fdset/ID, the form in which
// block drivers take one.
type FDSet struct {
	ID int
	FD FD
}

// Args hands the file over.
func (s FDSet) Args() []string {
	return []string{"-add-fd", option(pair{"fd", string(s.FD)}, pair{"set", strconv.Itoa(s.ID)})}
}

// Path is the file's name to QEMU.
func (s FDSet) Path() string { return fmt.Sprintf("/dev/fdset/%d", s.ID) }

// Blockdev is one node of the block graph: a protocol over Filename, or a
// format over the node File.
type Blockdev struct {
	Node     string
	Driver   string
	Filename string
	File     string // node
	Backing  string // node
	ReadOnly bool
	NoFlush  bool
}

// Args adds the node.
func (b Blockdev) Args() []string {
	pairs := slices.Concat(
		[]pair{{"driver", b.Driver}, {"node-name", b.Node}},
		set("filename", b.Filename), set("file", b.File), set("backing", b.Backing),
		on("read-only", b.ReadOnly), on("cache.no-flush", b.NoFlush),
	)
	if !b.ReadOnly {
		pairs = append(pairs, pair{"discard", "unmap"})
	}
	return []string{"-blockdev", option(pairs...)}
}

// nodes is the image's part of the block graph: a file, and top over it.
func (i Image) nodes(top Blockdev, fds FDSet) []string {
	file := Blockdev{Node: top.Node + "-file", Driver: "file", Filename: fds.Path(), ReadOnly: top.ReadOnly, NoFlush: top.NoFlush}
	if i.Device {
		file.Driver = "host_device"
	}
	top.Driver, top.File = i.Format, file.Node
	return slices.Concat(fds.Args(), file.Args(), top.Args())
}

// disks builds the block graph, each chain from its lowest image upwards, as
// QEMU wants a node to be there before another names it.
func (c Config) disks() []string {
	var args []string
	sets := 0
	for n, d := range c.Disks {
		node := ""
		for l, image := range slices.Backward(d.Layers) {
			layer := Blockdev{Node: fmt.Sprintf("disk%d", n), Backing: node, NoFlush: d.Throwaway}
			if l > 0 {
				layer = Blockdev{Node: fmt.Sprintf("disk%d-base%d", n, l), Backing: node, ReadOnly: true}
			}
			sets++
			args = append(args, image.nodes(layer, FDSet{ID: sets, FD: image.FD})...)
			node = layer.Node
		}
		args = append(args, c.virtio("blk", []pair{{"drive", node}}, c.bootIndex(n)).Args()...)
	}
	return args
}

// bootIndex is a device's place in the firmware's order: disks first, then
// NICs.
func (c Config) bootIndex(n int) []pair {
	if !c.firmwareBoot() {
		return nil
	}
	return []pair{{"bootindex", strconv.Itoa(n)}}
}
