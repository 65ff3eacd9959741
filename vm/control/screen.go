package control

import (
	"context"
	"errors"
	"fmt"
	"image/png"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/wire"
)

// screenshot answers with a file in memory, as a picture may be larger than a
// message.
func (s *Server) screenshot(ctx context.Context, _ *wire.Call) (any, error) {
	ctx, unwatch := s.unlessStopped(ctx)
	defer unwatch()
	picture, err := s.machine.Screenshot(ctx)
	if err != nil {
		return nil, refusal(ctx, s.machine.PID(), stateOf(err))
	}
	fd, err := unix.MemfdCreate("screenshot.png", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "screenshot.png")
	err = png.Encode(f, picture)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("encode picture: %w", err), f.Close())
	}
	return wire.WithFiles{Files: []*os.File{f}}, nil
}

// stateOf makes the lack of a screen the state that it is.
func stateOf(err error) error {
	if errors.Is(err, vm.ErrNoDisplay) {
		return &vm.StateError{Text: vm.ErrNoDisplay.Error()}
	}
	return err
}

// Screenshot is a picture of a machine's screen, as PNG.
func Screenshot(ctx context.Context, m vm.Machine) ([]byte, error) {
	files, err := m.Client().Do(ctx, wire.Request{Verb: "screenshot", Timeout: Patience}, nil)
	if err != nil {
		return nil, Explain(ctx, m, err)
	}
	var all []byte
	for _, f := range files {
		text, readErr := io.ReadAll(f)
		all = append(all, text...)
		err = errors.Join(err, readErr, f.Close())
	}
	return all, err
}

// Display tells how a machine's screen is reached.
func Display(ctx context.Context, m vm.Machine) (vm.Display, error) {
	var d vm.Display
	return d, ask(ctx, m, wire.Request{Verb: "display", Timeout: Patience}, &d)
}
