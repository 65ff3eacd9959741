package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/vmrun/vmrun/images"
	"github.com/vmrun/vmrun/vm/qemu"
)

// Save keeps the machine as it is now as a snapshot. The guest is stopped
// meanwhile. The snapshot is there whole or not at all, and survives a crash of
// the host once Save has returned. Where a signal has stopped QEMU for 2 s, the
// error wraps a *StateError.
func (i *Instance) Save(ctx context.Context, name string) (*Snapshot, error) {
	s := newSnapshot(i.plan.Name, name)
	return s, unlessStopped(ctx, i.PID(), func(ctx context.Context) error {
		i.saving.Lock()
		defer i.saving.Unlock()
		i.hot.mu.Lock()
		defer i.hot.mu.Unlock()
		return s.make(i.host, func() error { return i.saveInto(ctx, s) })
	})
}

// SaveEnded keeps the disks of a machine that has ended and was kept. The error wraps
// images.ErrLocked where another machine writes to one of them.
func SaveEnded(ctx context.Context, h Host, m Machine, name string) (*Snapshot, error) {
	s := newSnapshot(m.Name, name)
	if m.Plan == nil || m.Phase != Ended {
		return nil, s.unusable("there is nothing to save: the machine %s", m.Phase.Predicate())
	}
	if !slices.ContainsFunc(m.Plan.Disks, func(d images.DiskSpec) bool { return d.Keep }) {
		return nil, s.unusable("there is nothing to save: the machine has ended, and none of its disks was kept")
	}
	s.Plan = *m.Plan
	return s, s.make(h, func() error {
		for n, d := range s.Plan.Disks {
			if !d.Keep {
				continue
			}
			if err := images.Copy(ctx, d.Path, filepath.Join(s.dir, diskFile(n))); err != nil {
				return err
			}
		}
		return s.write()
	})
}

func newSnapshot(vm, name string) *Snapshot {
	return &Snapshot{Version: snapshotVersion, Name: name, VM: vm, Created: time.Now().UTC().Truncate(time.Second)}
}

// make has a snapshot's folder filled, under another name until it is whole.
func (s *Snapshot) make(h Host, fill func() error) error {
	dir := filepath.Join(snapshotsDir(h, s.VM), s.Name)
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return s.unusable("there is one already; remove it first")
	}
	s.dir = dir + newSuffix
	if err := errors.Join(os.RemoveAll(s.dir), makeFolders(h.Dirs.State, s.dir)); err != nil {
		return fmt.Errorf("save snapshot: %w", err)
	}
	err := fill()
	if err == nil {
		err = publish(s.dir, dir)
	}
	if err != nil {
		return fmt.Errorf("save snapshot %s of %s: %w", s.Name, s.VM, errors.Join(err, os.RemoveAll(s.dir)))
	}
	s.dir = dir
	return nil
}

// saveInto fills a snapshot's folder and lets the guest go on.
func (i *Instance) saveInto(ctx context.Context, s *Snapshot) (err error) {
	if err := i.describe(ctx, s); err != nil {
		return err
	}
	var status struct{ Running bool }
	if err := i.QMP().Run(ctx, "query-status", nil, &status); err != nil {
		return err
	}
	s.Paused = !status.Running
	if status.Running {
		// Where stop is given up QEMU may obey it yet.
		defer func() { err = errors.Join(err, afterwards(context.WithoutCancel(ctx), i.QMP(), i.PID(), "cont", nil)) }()
		if err := i.QMP().Run(ctx, "stop", nil, nil); err != nil {
			return err
		}
	}
	if err := i.saveMemory(ctx, filepath.Join(s.dir, memoryFile)); err != nil {
		return fmt.Errorf("save memory: %w", err)
	}
	for n, spec := range i.plan.Disks {
		if err := s.saveDisk(ctx, spec, i.disks[n], diskFile(n)); err != nil {
			return err
		}
	}
	if err := i.saveHotDisks(ctx, s); err != nil {
		return err
	}
	return s.write()
}

// describe fills in what a later launch has to know.
func (i *Instance) describe(ctx context.Context, s *Snapshot) error {
	var version struct {
		QEMU struct{ Major, Minor, Micro int }
	}
	if err := i.QMP().Run(ctx, "query-version", nil, &version); err != nil {
		return err
	}
	s.QEMU = fmt.Sprintf("%d.%d.%d", version.QEMU.Major, version.QEMU.Minor, version.QEMU.Micro)
	// The path may lead to a newer one by now. Where it can't be seen, restore asks.
	if program, err := baseAt(i.host.QEMU, fmt.Sprintf("/proc/%d/exe", i.PID())); err == nil {
		s.Program = program
	}
	s.Plan = *i.plan
	s.Plan.Accel, s.Plan.Fallback, s.Plan.Warnings, s.Plan.Restore = i.Accel(), false, nil, nil
	if s.Plan.Accel == qemu.KVM {
		s.CPU = hostCPU()
	}
	s.Plan.NICs = slices.Clone(s.Plan.NICs)
	for n, nic := range i.NICs() {
		if port := s.Plan.NICs[n].Port; port != nil {
			pinned := *port
			pinned.IP = nic.IP // the guest goes on with it
			s.Plan.NICs[n].Port = &pinned
		}
	}
	s.Plan.Disks = slices.Clone(s.Plan.Disks)
	for n := range s.Plan.Disks {
		s.Plan.Disks[n].Overlay = ""
	}
	return i.describeHot(ctx, s)
}

// describeHot fills in what came while the machine ran.
func (i *Instance) describeHot(ctx context.Context, s *Snapshot) (err error) {
	if i.plan.MaxCPUs > i.plan.CPUs {
		if _, s.CPUs, err = i.cpus(ctx); err != nil {
			return err
		}
	}
	s.Devices, err = i.savedDevices(ctx)
	return err
}

func (i *Instance) saveMemory(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = i.streamMemory(ctx, f)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// streamMemory has QEMU write into a pipe, and what is worth keeping into a file.
func (i *Instance) streamMemory(ctx context.Context, f *os.File) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	trimmed := make(chan error, 1)
	go func() {
		err := trimZeros(f, r)
		trimmed <- errors.Join(err, r.Close()) // QEMU fails, where this has
	}()
	err = migration{i.QMP(), i.PID()}.save(ctx, w)
	if err = errors.Join(err, w.Close()); err != nil {
		r.SetReadDeadline(time.Now()) // QEMU may be stopped, with its end open
	}
	cause := <-trimmed
	if err == nil || cause != nil && !errors.Is(cause, os.ErrDeadlineExceeded) {
		return cause // says more than QEMU, which has seen a closed pipe
	}
	return err
}

// saveDisk copies what the guest writes to: an overlay, whose bases have to stay as
// they are, or a kept image.
func (s *Snapshot) saveDisk(ctx context.Context, spec images.DiskSpec, d writtenDisk, file string) error {
	path := filepath.Join(s.dir, file)
	if spec.Keep {
		return saveImage(ctx, spec.Path, path)
	}
	for _, base := range d.bases {
		b, err := newBase(base)
		if err != nil {
			return err
		}
		s.Bases = append(s.Bases, b)
	}
	return images.Clone(ctx, d.overlay, path)
}

func saveImage(ctx context.Context, from, to string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	return images.Clone(ctx, f, to)
}

// write completes a snapshot.
func (s *Snapshot) write() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil {
			return err
		}
		s.Size += allocated(fi)
	}
	text, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(s.dir, snapshotFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(text, '\n'))
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// publish gives a finished folder its name, for good.
func publish(from, to string) error {
	if err := syncFolder(from); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(to))
}

func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// allocated is how much of the disk a file takes, in bytes.
func allocated(fi fs.FileInfo) int64 {
	const block = 512 // stat(2)
	return fi.Sys().(*syscall.Stat_t).Blocks * block
}
