package vm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/qmp"
)

// The pcap format (draft-ietf-opsawg-pcap), as QEMU writes it.
const (
	pcapHeader = 24 // bytes of the file's header
	pcapRecord = 16 // bytes before each frame
	pcapLength = 8  // where in these the frame's length is

	dumpLimit = 1 << 16 // bytes kept of a frame
	dumpQueue = 1 << 10 // frames that wait for a reader; more are dropped
)

// Dump is what a card in mode user sends and receives, as a pcap file. Whoever has
// it closes it.
type Dump struct {
	frames *os.File
	undo   undo
}

// StartDump has QEMU write down the frames of a card in mode user. Cards on other
// networks have a TAP to listen to.
func (i *Instance) StartDump(ctx context.Context, nic int) (*Dump, error) {
	if nic < 0 || nic >= len(i.plan.NICs) || i.plan.NICs[nic].Spec != nil {
		return nil, fmt.Errorf("dump frames: %s has no card %d in mode user", i.plan.Name, nic)
	}
	d, err := i.startDump(ctx, nic)
	if err != nil {
		return nil, fmt.Errorf("dump frames: %w", err)
	}
	return d, nil
}

// CopyTo writes the frames to w until a write fails, or ctx or the machine ends. A
// writer that is slow misses frames; the guest never waits for it. It is called
// once.
func (d *Dump) CopyTo(ctx context.Context, w io.Writer) {
	frames := make(chan []byte, dumpQueue)
	go func() {
		defer close(frames)
		readDump(d.frames, frames)
	}()
	for {
		select {
		case f, ok := <-frames:
			if !ok {
				return
			}
			if _, err := w.Write(f); err != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// Close has QEMU write no more.
func (d *Dump) Close() error { return d.undo.run() }

// startDump has QEMU write frames into a pipe. QEMU opens its end by name, so its
// user must be allowed to.
func (i *Instance) startDump(ctx context.Context, nic int) (d *Dump, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	d = &Dump{frames: r}
	d.undo.push(r.Close)
	defer func() {
		if err = errors.Join(err, w.Close()); err != nil {
			d, err = nil, errors.Join(err, d.undo.run())
		}
	}()
	if err := unix.Fchmod(int(w.Fd()), 0o622); err != nil {
		return d, err
	}
	var set struct {
		ID int `json:"fdset-id"`
		FD int
	}
	if err := i.QMP().RunWithFile(ctx, "add-fd", nil, &set, w); err != nil {
		return d, err
	}
	id := fmt.Sprintf("dump%d", i.dumps.Add(1))
	filter := map[string]any{"qom-type": "filter-dump", "id": id, "netdev": fmt.Sprintf("n%d", nic),
		"file": fmt.Sprintf("/proc/self/fd/%d", set.FD), "maxlen": dumpLimit}
	err = i.QMP().Run(ctx, "object-add", filter, nil)
	if _, refused := errors.AsType[*qmp.Error](err); !refused { // it is done, or may be yet
		d.undo.push(i.undoCommand("object-del", map[string]any{"id": id}))
	}
	// From now on QEMU has it open by itself, or not at all.
	return d, errors.Join(err, i.undoCommand("remove-fd", map[string]any{"fdset-id": set.ID})())
}

// readDump takes frames as they come and drops those that nobody takes: QEMU
// would wait, and the guest with it.
func readDump(r io.Reader, frames chan<- []byte) {
	header := make([]byte, pcapHeader)
	if _, err := io.ReadFull(r, header); err != nil {
		return
	}
	frames <- header // there is room for the first
	for {
		record := make([]byte, pcapRecord)
		if _, err := io.ReadFull(r, record); err != nil {
			return
		}
		length := binary.NativeEndian.Uint32(record[pcapLength:])
		if length > dumpLimit {
			return // not what QEMU writes
		}
		frame := append(record, make([]byte, length)...)
		if _, err := io.ReadFull(r, frame[pcapRecord:]); err != nil {
			return
		}
		select {
		case frames <- frame:
		default:
		}
	}
}
