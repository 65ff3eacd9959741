package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// DiskSpec names a disk image and says what may become of it.
type DiskSpec struct {
	Path   string `json:"path"`           // an image file or a block device
	Format Format `json:"format"`         // FormatAuto only where Keep is false
	Size   int64  `json:"size,omitempty"` // bytes the guest sees at least; 0: the image's own size
	Keep   bool   `json:"keep,omitempty"` // false: the guest's changes are thrown away

	// Overlay is the path of an overlay that a snapshot has kept: the content
	// that the new one begins with, where Keep is false. "": it begins empty.
	Overlay string `json:"overlay,omitempty"`
}

// Disk is an opened disk: a stack of image files.
type Disk struct {
	// Layers starts with the one that the guest writes to. Each is the backing
	// image of the one before it. No layer may be left to QEMU to find by the
	// name in another's header: an overlay that PrepareDisk made has no such
	// name, and QEMU's user may not be able to open the others.
	Layers []Layer
	Size   int64 // bytes that the guest sees
}

// Layer is one image file of a disk.
type Layer struct {
	File     *os.File // O_CLOEXEC; O_RDWR unless ReadOnly. The disk's: Disk.Close closes it
	Path     string   // for messages; "" for an overlay, which has no name
	Format   Format   // FormatQCOW2 or FormatRaw
	Device   bool     // a block device: QEMU's driver host_device rather than file
	ReadOnly bool     //
}

// ErrLocked is in the chain of PrepareDisk's error where another process, in
// all likelihood another QEMU, uses the image in a way that excludes this use.
var ErrLocked = errors.New("in use by another virtual machine")

// PrepareDisk opens a disk. A disk that is not kept gets an overlay in dir,
// made by the qemu-img program and without a name from the start, so that it is
// gone with its last descriptor; its base is opened read-only. A kept disk is
// opened for writing, and grown on the spot if spec.Size is larger than the
// image; it stays so even if no machine is started after all.
//
// The caller closes the disk, at the earliest when QEMU has the descriptors.
// The locks of other machines are only looked at, not taken: QEMU takes its own
// and has the last word.
func PrepareDisk(ctx context.Context, qemuImg, dir string, spec DiskSpec) (*Disk, error) {
	disk, err := openDisk(spec)
	if err != nil {
		return nil, fmt.Errorf("open disk %q: %w", spec.Path, err)
	}
	img := imageTool{path: qemuImg}
	if spec.Keep {
		err = disk.grow(ctx, img, spec.Size)
	} else {
		err = disk.addOverlay(ctx, img, dir, spec)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare disk %q: %w", spec.Path, err), disk.Close())
	}
	return disk, nil
}

// Close closes the files of all layers.
func (d *Disk) Close() error {
	var errs []error
	for _, l := range d.Layers {
		errs = append(errs, l.File.Close())
	}
	return errors.Join(errs...)
}

// openDisk opens the image of spec and whatever it is backed by.
func openDisk(spec DiskSpec) (_ *Disk, err error) {
	if spec.Size < 0 {
		return nil, fmt.Errorf("size of %d bytes", spec.Size)
	}
	if spec.Keep && spec.Format == FormatAuto {
		// The guest could write a header of another format into it and so
		// choose how the host reads it the next time.
		return nil, errors.New("a kept disk needs its format: qcow2 or raw")
	}
	disk := &Disk{}
	defer func() {
		if err != nil {
			err = errors.Join(err, disk.Close())
		}
	}()
	next, trusted := Layer{Path: spec.Path, Format: spec.Format, ReadOnly: !spec.Keep}, spec.Format != FormatAuto
	for {
		image, err := disk.push(next)
		if err != nil {
			return nil, err
		}
		if len(disk.Layers) == 1 {
			disk.Size = image.size
		}
		if image.backing == "" {
			return disk, nil
		}
		if !trusted {
			return nil, fmt.Errorf("it is backed by %q: that is followed only where the format is given as qcow2", image.backing)
		}
		next, err = backingLayer(next.Path, image)
		if err != nil {
			return nil, err
		}
	}
}

// push opens a layer, and adds it once it is known to be usable.
func (d *Disk) push(l Layer) (image, error) {
	wrap := func(err error) (image, error) {
		if len(d.Layers) > 0 {
			err = fmt.Errorf("open backing image %q: %w", l.Path, err)
		}
		return image{}, err
	}
	var err error
	if l.File, l.Device, err = openImage(l.Path, !l.ReadOnly); err != nil {
		return wrap(err)
	}
	im, err := d.inspect(&l)
	if err != nil {
		return wrap(errors.Join(err, l.File.Close()))
	}
	d.Layers = append(d.Layers, l)
	return im, nil
}

// inspect finds out what an opened layer contains, and settles its format.
func (d *Disk) inspect(l *Layer) (image, error) {
	if err := d.checkUnique(l.File); err != nil {
		return image{}, err
	}
	if err := checkLocks(l.File, !l.ReadOnly); err != nil {
		return image{}, err
	}
	format, err := DetectFormat(l.File)
	switch {
	case l.Format == FormatRaw:
		format = FormatRaw
	case err != nil:
		return image{}, err
	case l.Format == FormatQCOW2 && format != FormatQCOW2:
		return image{}, errors.New("not a qcow2 image")
	}
	l.Format = format
	if format == FormatQCOW2 {
		return readQCOW2(l.File)
	}
	size, err := l.File.Seek(0, io.SeekEnd)
	return image{size: size}, err
}

// checkUnique refuses a file that is already a layer: a chain that bites its tail.
func (d *Disk) checkUnique(f *os.File) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	for _, l := range d.Layers {
		other, err := l.File.Stat()
		if err != nil {
			return err
		}
		if os.SameFile(fi, other) {
			return errors.New("it is its own backing image")
		}
	}
	return nil
}

// openImage opens a regular file or a block device.
func openImage(path string, write bool) (f *os.File, device bool, err error) {
	// Before open, which would wait for ever on a FIFO.
	fi, err := os.Stat(path)
	if err != nil {
		return nil, false, cause(err)
	}
	device = fi.Mode()&fs.ModeType == fs.ModeDevice
	if !fi.Mode().IsRegular() && !device {
		return nil, false, errors.New("neither a file nor a block device")
	}
	flag := os.O_RDONLY
	if write {
		flag = os.O_RDWR
	}
	f, err = os.OpenFile(path, flag, 0)
	return f, device, cause(err)
}

// cause drops the operation and the path from an error whose user adds them.
func cause(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}

// addOverlay puts an overlay on top, at least as large as the spec says: an empty
// one, or a copy of one that a snapshot has kept.
func (d *Disk) addOverlay(ctx context.Context, img imageTool, dir string, spec DiskSpec) error {
	size := max(spec.Size, d.Size)
	f, err := img.createOverlay(ctx, dir, size, spec.Overlay)
	if err != nil {
		return err
	}
	d.Layers = append([]Layer{{File: f, Format: FormatQCOW2}}, d.Layers...)
	d.Size = roundUp(size)
	return nil
}

// grow makes a kept image at least size bytes large.
func (d *Disk) grow(ctx context.Context, img imageTool, size int64) error {
	top := d.Layers[0]
	switch {
	case size <= d.Size:
		return nil
	case top.Device:
		return fmt.Errorf("grow to %d bytes: a block device of %d bytes", size, d.Size)
	case len(d.Layers) > 1:
		// qemu-img would look for the backing image by name, beside a
		// descriptor that has no folder.
		return fmt.Errorf("grow to %d bytes: an image with a backing image; use qemu-img resize", size)
	}
	if err := img.resize(ctx, top, size); err != nil {
		return err
	}
	d.Size = roundUp(size)
	return nil
}

// roundUp rounds a size up to whole sectors, as qemu-img does.
func roundUp(size int64) int64 { return (size + 511) &^ 511 }
