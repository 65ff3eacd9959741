package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/cheggaaa/pb/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/vmrun/vmrun/images/guest/tree"
	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/agent"
	"github.com/vmrun/vmrun/vm/control"
)

// copyOptions are the flags of cp.
type copyOptions struct {
	wait  time.Duration // for the agent
	quiet bool
}

const copyHelp = `Copy a file, or a folder with all that is in it, into the guest of a running VM or
out of it, by the guest's agent. One of SRC and DST is VM:PATH, where PATH is
absolute or below /; a local name with a colon is written as ./a:b.

Where DST is a folder that is there, SRC comes into it under its own name; else
DST is its new name. Permissions, times and symbolic links are kept, owners are
not, and what is neither file, folder nor symbolic link is refused. Files have
another name until they are whole, and so has a folder that is new.`

func newCopyCommand() *cobra.Command {
	var o copyOptions
	cmd := &cobra.Command{
		Use:     "cp SRC VM:DST | VM:SRC DST",
		Short:   "Copy files into the guest of a VM, or out of it",
		Long:    copyHelp,
		Example: "  vmrun cp app.conf web:/etc/app/\n  vmrun cp web:/var/log ./logs",
		Args: usageArgs(func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return fmt.Errorf("want SRC and DST, got %d arguments", len(args))
			}
			return nil
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			return copyCommand(cmd.Context(), args[0], args[1], o)
		},
		ValidArgsFunction: completeCopy,
	}
	f := cmd.Flags()
	f.DurationVar(&o.wait, "wait", agent.Patience, "how long the guest's agent may take to answer")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "no progress")
	return cmd
}

// place is a file or folder, here or in a guest.
type place struct {
	vm   string // "": here
	path string
}

// parsePlace tells VM:PATH from a local path.
func parsePlace(text string) (place, error) {
	name, rest, remote := strings.Cut(text, ":")
	if !remote || strings.Contains(name, "/") {
		if text == "" {
			return place{}, errors.New("want the name of a file or folder, got none")
		}
		return place{path: text}, nil
	}
	if name == "" || rest == "" {
		return place{}, fmt.Errorf("parse %q: want VM:PATH", text)
	}
	return place{vm: name, path: guestPath(rest)}, nil
}

// guestPath is a path of a guest as an absolute one. A slash at its end, which
// says that it is a folder, stays.
func guestPath(text string) string {
	p := path.Join("/", text)
	if strings.HasSuffix(text, "/") && p != "/" {
		p += "/"
	}
	return p
}

func copyCommand(ctx context.Context, from, to string, o copyOptions) error {
	src, err := parsePlace(from)
	if err != nil {
		return usageError{"vmrun cp", err}
	}
	dst, err := parsePlace(to)
	switch {
	case err != nil:
	case o.wait <= 0:
		err = fmt.Errorf("--wait %v: want a duration above zero", o.wait)
	case (src.vm == "") == (dst.vm == ""):
		err = errors.New("want VM:PATH for one of SRC and DST")
	}
	if err != nil {
		return usageError{"vmrun cp", err}
	}
	machine, err := oneVM(ctx, src.vm+dst.vm)
	if err == nil {
		err = living(machine, "copy files of")
	}
	if err != nil {
		return err
	}
	signals, stop := listen()
	defer stop()
	err, signal, _ := untilSignal(ctx, signals, func(ctx context.Context) error {
		if src.vm == "" {
			return copyIn(ctx, machine, src.path, dst.path, o)
		}
		return copyOut(ctx, machine, src.path, dst.path, o)
	})
	if signal != 0 && err != nil {
		return exitError{exitSignal + int(signal), signalError{signal}}
	}
	if err != nil {
		return fmt.Errorf("copy %s to %s: %w", from, to, err)
	}
	return nil
}

// copyIn copies from here into a guest.
func copyIn(ctx context.Context, m vm.Machine, src, dst string, o copyOptions) error {
	// What can't be read is told before the guest is asked for anything.
	size, err := tree.Size(src)
	if err != nil {
		return err
	}
	name, err := baseName(src)
	if err != nil {
		return err
	}
	p := o.progress(name)
	defer p.end()
	p.start(size)
	r, w := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		err := tree.Pack(io.MultiWriter(w, p), src)
		if err == nil {
			p.complete()
		}
		w.CloseWithError(err)
		packed <- err
	}()
	err = control.Put(ctx, m, dst, name, r, o.wait, nil)
	r.Close()
	if failed := <-packed; failed != nil && !errors.Is(failed, io.ErrClosedPipe) {
		return failed // the guest knows only that something was missing
	}
	return err
}

// baseName is the name of a local file or folder, also where it is . or such.
func baseName(name string) (string, error) {
	whole, err := filepath.Abs(name)
	if err != nil {
		return "", err
	}
	if whole == "/" {
		return "", errors.New("want a file or folder, and not all there is")
	}
	return filepath.Base(whole), nil
}

// copyOut copies from a guest to here.
func copyOut(ctx context.Context, m vm.Machine, src, dst string, o copyOptions) error {
	name := path.Base(src)
	if name == "/" {
		return errors.New("want a file or folder, and not all there is")
	}
	p := o.progress(name)
	defer p.end()
	r, w := io.Pipe()
	unpacked := make(chan error, 1)
	go func() {
		err := tree.Unpack(r, dst, name)
		r.CloseWithError(err)
		unpacked <- err
	}()
	err := control.Get(ctx, m, src, p.start, io.MultiWriter(w, p), o.wait, nil)
	if err == nil {
		p.complete()
	}
	w.CloseWithError(err)
	failed := <-unpacked
	if failed != nil && (err == nil || errors.Is(err, failed)) {
		return failed
	}
	return err
}

// copyProgress shows how far a copy is, on a terminal alone. It may be used by
// several goroutines.
type copyProgress struct {
	name string
	w    io.Writer // nil: nothing is shown

	mu    sync.Mutex
	moved int64
	bar   *pb.ProgressBar // nil: nothing is shown yet
}

func (o copyOptions) progress(name string) *copyProgress {
	p := &copyProgress{name: name}
	if !o.quiet && term.IsTerminal(int(os.Stderr.Fd())) {
		p.w = os.Stderr
	}
	return p
}

// start is told how many bytes there are, if nothing changes meanwhile.
func (p *copyProgress) start(size int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.w == nil {
		return
	}
	p.bar = pb.Full.New(0).SetTotal(size).SetWriter(p.w).Set(pb.Bytes, true).Set(pb.CleanOnFinish, true).Set("prefix", p.name+" ")
	p.show()
	p.bar.Start()
}

// show has the bar show what was moved. What is more than start was told does not
// count: the bar reads the total first when it is drawn, so a higher one could come
// too late.
func (p *copyProgress) show() { p.bar.SetCurrent(min(p.moved, p.bar.Total())) }

// Write counts what has come.
func (p *copyProgress) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.moved += int64(len(b))
	if p.bar != nil {
		p.show()
	}
	return len(b), nil
}

// complete says that nothing more comes.
func (p *copyProgress) complete() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		p.bar.SetTotal(p.bar.Current())
	}
}

func (p *copyProgress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		p.bar.Finish()
	}
}
