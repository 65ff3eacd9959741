package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/gofrs/flock"
)

// NoteEnd says how the run that the machine is of ends, where that is not what
// the machine's own ending says: for the state that is kept. Its Ending and Time
// are seen to.
func (i *Instance) NoteEnd(e End) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.end = &e
}

// endState is how the machine ended, for its kept state.
func (i *Instance) endState() End {
	i.mu.Lock()
	defer i.mu.Unlock()
	e := End{Code: i.ending.ExitCode()}
	if err := i.ending.Err(); err != nil {
		e.Error = err.Error()
	}
	if i.end != nil {
		e = *i.end
	}
	e.Ending, e.Time = i.ending, time.Now().Round(0)
	return e
}

// forget ends the machine's state.json, keeping what is to be kept. A launch
// that failed keeps nothing.
func (l *launch) forget() error {
	if !l.options.Keep || !l.launched {
		return l.record.remove()
	}
	s := l.record.get()
	end := l.instance.endState()
	s.Phase, s.End, s.QEMU = Ended, &end, 0
	return errors.Join(archive(l.host, l.dir, s), l.record.remove())
}

// archive moves a machine's logs to where they outlive a reboot, and its state.
func archive(h Host, from string, s State) error {
	to := filepath.Join(vmsFolder(h.Dirs.State), s.Name)
	if err := makeFolders(h.Dirs.State, to); err != nil {
		return fmt.Errorf("keep state: %w", err)
	}
	var errs []error
	for _, name := range logNames() {
		err := moveFile(filepath.Join(from, name), filepath.Join(to, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("keep log: %w", err))
		}
	}
	return errors.Join(append(errs, writeState(filepath.Join(to, stateFile), s))...)
}

// moveFile renames a file, or copies it to another file system.
func moveFile(from, to string) error {
	err := os.Rename(from, to)
	if !errors.Is(err, syscall.EXDEV) {
		return err
	}
	src, err := os.OpenFile(from, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	if _, err := io.Copy(dst, src); err != nil {
		return errors.Join(err, dst.Close(), os.Remove(to))
	}
	return errors.Join(dst.Close(), os.Remove(from))
}

// ErrAlive is in the chain of Remove's error where the machine still lives.
var ErrAlive = errors.New("it is still there")

// Remove forgets a machine that has ended or died: its state and its logs. Its
// snapshots stay.
func Remove(ctx context.Context, h Host, name string) error {
	m, err := Open(ctx, h, name)
	if err != nil {
		return err
	}
	if m.Alive() {
		return fmt.Errorf("remove %s: %w", name, ErrAlive)
	}
	dir := filepath.Join(vmsFolder(h.Dirs.Runtime), name)
	if err := makeFolders(h.Dirs.Runtime, dir); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	lock := flock.New(filepath.Join(dir, lockFile))
	taken, err := lock.TryLock()
	if err == nil && !taken {
		err = ErrAlive
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	var errs []error
	for _, file := range append(logNames(), stateFile, stateFile+newSuffix, SocketFile) {
		errs = append(errs, removeIfThere(filepath.Join(dir, file)))
	}
	errs = append(errs, removeKept(filepath.Join(vmsFolder(h.Dirs.State), name)), lock.Close())
	return errors.Join(errs...)
}

// removeKept removes the state and the logs of a machine from its kept folder,
// and the folder if nothing else is there, such as snapshots.
func removeKept(dir string) error {
	var errs []error
	for _, file := range append(logNames(), stateFile, stateFile+newSuffix) {
		errs = append(errs, removeIfThere(filepath.Join(dir, file)))
	}
	err := os.Remove(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Left is what is there of a machine that was not kept: its logs, until its name
// is used again.
func Left(h Host, name string) (Machine, bool) {
	dir := filepath.Join(vmsFolder(h.Dirs.Runtime), name)
	if name == "" || name != filepath.Base(name) {
		return Machine{}, false
	}
	if _, err := os.Stat(filepath.Join(dir, ConsoleLog)); err != nil {
		return Machine{}, false
	}
	return Machine{State: State{Name: name, Phase: Ended}, Dir: dir}, true
}
