package vm

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/vmrun/vmrun/images"
	"github.com/vmrun/vmrun/vm/qemu"
)

// AttachDisk gives a running machine one more disk: an image that is kept, or one whose
// changes are thrown away with the disk. It is taken away by Detach, or with the machine.
func (i *Instance) AttachDisk(ctx context.Context, spec images.DiskSpec) (Attachment, error) {
	return i.attach(ctx, newHotDisk(spec))
}

func newHotDisk(spec images.DiskSpec) *hotDevice {
	return &hotDevice{Attachment: Attachment{Kind: kindDisk, What: spec.Path}, disk: &spec}
}

func (i *Instance) addDisk(ctx context.Context, d *hotDevice) error {
	spec := *d.disk
	if i.host.QEMUImg == "" && (!spec.Keep || spec.Size > 0) {
		return lacks(NeedQEMUImg, "prepare disk %s: no qemu-img in PATH", spec.Path)
	}
	dir := filepath.Join(i.host.Dirs.State, "vms")
	if err := makeFolders(i.host.Dirs.State, dir); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	disk, err := images.PrepareDisk(ctx, i.host.QEMUImg, dir, spec)
	if err != nil {
		return err
	}
	defer disk.Close() // QEMU has its own then
	if d.written, err = keepOverlay(disk); err != nil {
		return err
	}
	if overlay := d.written.overlay; overlay != nil {
		d.leave = overlay.Close
		d.remove.push(overlay.Close)
	}
	top, err := i.addNodes(ctx, d, disk.Layers, !spec.Keep)
	if err != nil {
		return err
	}
	return i.QMP().Run(ctx, "device_add", d.slot.Disk(d.ID, top), nil)
}

// addNodes builds a disk's part of the block graph, from the lowest image
// upwards, and returns the name of the node on top.
func (i *Instance) addNodes(ctx context.Context, d *hotDevice, layers []images.Layer, throwaway bool) (string, error) {
	top := ""
	for n, layer := range slices.Backward(layers) {
		format := qemu.Blockdev{Node: fmt.Sprintf("%s-%d", d.ID, n), Driver: string(layer.Format), Backing: top, ReadOnly: n > 0, NoFlush: throwaway}
		file := qemu.Blockdev{Node: format.Node + "-file", Driver: "file", ReadOnly: format.ReadOnly, NoFlush: throwaway}
		if layer.Device {
			file.Driver = "host_device"
		}
		var set struct {
			ID int `json:"fdset-id"`
		}
		if err := i.QMP().RunWithFile(ctx, "add-fd", nil, &set, layer.File); err != nil {
			return "", err
		}
		d.remove.push(i.undoCommand("remove-fd", map[string]any{"fdset-id": set.ID}))
		file.Filename = fmt.Sprintf("/dev/fdset/%d", set.ID)
		format.File = file.Node
		for _, node := range []qemu.Blockdev{file, format} {
			if err := i.QMP().Run(ctx, "blockdev-add", node.Options(), nil); err != nil {
				return "", err
			}
			d.remove.push(i.undoCommand("blockdev-del", map[string]any{"node-name": node.Node}))
		}
		top = format.Node
	}
	return top, nil
}

// undoPatience is how long QEMU may take to undo a command: the next attachment
// waits for it.
const undoPatience = 5 * time.Second

// undoCommand is a QMP command that undoes another. A QEMU that is gone has
// nothing to undo; one that was stopped by a signal does it when it goes on.
func (i *Instance) undoCommand(command string, args map[string]any) func() error {
	return func() error {
		if i.hasEnded() {
			return nil
		}
		ctx, cancel := context.WithTimeout(context.Background(), undoPatience)
		defer cancel()
		err := afterwards(ctx, i.QMP(), i.PID(), command, args)
		if err != nil && i.hasEnded() {
			return nil
		}
		return errors.Join(err)
	}
}
