package vm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Screenshot returns what the machine's screen shows, or ErrNoDisplay.
func (i *Instance) Screenshot(ctx context.Context) (image.Image, error) {
	if i.display == nil {
		return nil, ErrNoDisplay
	}
	picture, err := i.screendump(ctx)
	if err != nil {
		return nil, fmt.Errorf("take a screenshot: %w", err)
	}
	return picture, nil
}

// screendump has QEMU write into a file without a name, which its user could not
// make by itself. QEMU empties it first, so a pipe won't do.
func (i *Instance) screendump(ctx context.Context) (image.Image, error) {
	fd, err := unix.MemfdCreate("screenshot", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make file in memory: %w", err)
	}
	dump := os.NewFile(uintptr(fd), "screenshot")
	defer dump.Close()
	// QEMU looks in the set for a file that is open for writing alone.
	w, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	var set struct {
		ID int `json:"fdset-id"`
	}
	if err := i.QMP().RunWithFile(ctx, "add-fd", nil, &set, w); err != nil {
		return nil, err
	}
	err = i.QMP().Run(ctx, "screendump", map[string]any{"filename": fmt.Sprintf("/dev/fdset/%d", set.ID)}, nil)
	err = errors.Join(err, i.QMP().Run(ctx, "remove-fd", map[string]any{"fdset-id": set.ID}, nil))
	if err != nil {
		return nil, err
	}
	return readPPM(bufio.NewReader(dump))
}

// maxPixels bounds a picture: four screens of 4096 by 4096.
const maxPixels = 1 << 26

// readPPM reads a binary portable pixmap with a byte for each colour, the format
// that QEMU writes in every version (ppm(5)).
func readPPM(r io.Reader) (image.Image, error) {
	var width, height, depth int
	var end byte
	if _, err := fmt.Fscanf(r, "P6\n%d %d\n%d%c", &width, &height, &depth, &end); err != nil {
		return nil, fmt.Errorf("read picture: %w", err)
	}
	if depth != 255 || width < 1 || height < 1 || width > maxPixels/height {
		return nil, fmt.Errorf("read picture: %d by %d of depth %d", width, height, depth)
	}
	picture := image.NewRGBA(image.Rect(0, 0, width, height))
	row := make([]byte, 3*width)
	for y := range height {
		if _, err := io.ReadFull(r, row); err != nil {
			return nil, fmt.Errorf("read picture: %w", err)
		}
		for x := range width {
			picture.SetRGBA(x, y, color.RGBA{row[3*x], row[3*x+1], row[3*x+2], 255})
		}
	}
	return picture, nil
}
