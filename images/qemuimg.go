package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// imageTool is the qemu-img program. It sees images as inherited descriptors
// only, so that no name of a file can be taken for an option or a protocol.
type imageTool struct {
	path string
}

// inherited is the name by which a child opens its first extra file.
const inherited = "/proc/self/fd/3"

// createOverlay makes an empty qcow2 image of size bytes in dir that has no
// name, and no backing image in its header: QEMU is told of that when it runs.
// Where a kept overlay is named, it is a copy of that one instead.
func (t imageTool) createOverlay(ctx context.Context, dir string, size int64, kept string) (*os.File, error) {
	f, err := openNameless(dir)
	if err != nil {
		return nil, fmt.Errorf("create overlay in %q: %w", dir, cause(err))
	}
	if kept != "" {
		if err := cloneFrom(ctx, f, kept); err != nil {
			return nil, errors.Join(fmt.Errorf("create overlay in %q: %w", dir, err), f.Close())
		}
		return f, nil
	}
	if err := t.run(ctx, f, "create", "-q", "-f", string(FormatQCOW2), inherited, strconv.FormatInt(size, 10)); err != nil {
		return nil, errors.Join(fmt.Errorf("create overlay in %q: %w", dir, err), f.Close())
	}
	return f, nil
}

// resize grows the image of a layer to size bytes.
func (t imageTool) resize(ctx context.Context, l Layer, size int64) error {
	if err := t.run(ctx, l.File, "resize", "-q", "-f", string(l.Format), inherited, strconv.FormatInt(size, 10)); err != nil {
		return fmt.Errorf("grow to %d bytes: %w", size, err)
	}
	return nil
}

// run runs qemu-img with f as the inherited file. It does not outlive ctx.
func (t imageTool) run(ctx context.Context, f *os.File, args ...string) error {
	cmd := exec.CommandContext(ctx, t.path, args...)
	cmd.ExtraFiles = []*os.File{f}
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if text := strings.TrimSpace(string(out)); err != nil && text != "" {
		return fmt.Errorf("run %s %s: %w: %s", t.path, args[0], err, text)
	}
	return err
}

// openNameless makes a file in dir that vanishes with its last descriptor.
func openNameless(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) {
		return f, err
	}
	// A file system without O_TMPFILE, such as NFS.
	if f, err = os.CreateTemp(dir, "overlay-"); err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
