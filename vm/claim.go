package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/gofrs/flock"

	"github.com/vmrun/vmrun/vm/wire"
)

// claimName makes the virtual machine's folder, takes its lock and listens at its
// control socket. The lock is never unlinked: it would have two owners then. The
// logs stay too, until the next launch.
func (l *launch) claimName(ctx context.Context) (err error) {
	if l.dir, err = MakeFolder(l.host, l.plan.Name); err != nil {
		return err
	}
	if err := l.lock(ctx); err != nil {
		return err
	}
	if kept, ok := findKept(l.host, l.plan.Name); ok {
		return lacks(NeedRemoval, "claim name: the state of a virtual machine %q is kept%s", l.plan.Name, kept.whose())
	}
	l.record = &record{path: filepath.Join(l.dir, stateFile), state: State{
		Name: l.plan.Name, Profile: l.plan.Profile, Phase: Starting, Supervisor: os.Getpid(),
		Started: time.Now().Round(0), Keep: l.options.Keep, Plan: l.plan,
	}}
	l.undo.push(l.forget)
	if err := l.record.update(func(*State) {}); err != nil {
		return err
	}
	if err := l.listen(); err != nil {
		return err
	}
	if l.qemuLog, err = l.createLog(QEMULog); err != nil {
		return err
	}
	l.consoleLog, err = l.createLog(ConsoleLog)
	return err
}

// Whoever looks whether a machine lives may hold its lock for a moment.
const (
	lockAttempts = 20
	lockInterval = 5 * time.Millisecond
)

// lock takes the machine's lock.
func (l *launch) lock(ctx context.Context) error {
	lock := flock.New(filepath.Join(l.dir, lockFile))
	for range lockAttempts {
		taken, err := lock.TryLock()
		if err != nil {
			return fmt.Errorf("claim name: %w", err)
		}
		if taken {
			l.undo.push(lock.Close)
			return nil
		}
		select {
		case <-time.After(lockInterval):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	other := ""
	if s, err := readState(filepath.Join(l.dir, stateFile)); err == nil {
		other = Machine{State: s}.whose()
	}
	return lacks(NeedName, "claim name: a virtual machine %q is running%s", l.plan.Name, other)
}

// whose tells which process and profile a machine is of.
func (m Machine) whose() string {
	switch {
	case m.Err != nil || m.Supervisor == 0:
		return ""
	case m.End != nil:
		return fmt.Sprintf(" (profile %s)", m.Profile)
	}
	return fmt.Sprintf(" (process %d, profile %s)", m.Supervisor, m.Profile)
}

// listen binds the control socket. Whoever connects before it is served waits.
func (l *launch) listen() (err error) {
	if l.control, err = wire.Listen(l.dir, SocketFile); err != nil {
		return err
	}
	l.undo.push(func() error {
		return errors.Join(l.control.Close(), removeIfThere(filepath.Join(l.dir, SocketFile)))
	})
	return nil
}

// MakeFolder makes the folder that a machine of a name has while it lives, and
// returns its path.
func MakeFolder(h Host, name string) (string, error) {
	dir := filepath.Join(vmsFolder(h.Dirs.Runtime), name)
	if err := makeFolders(h.Dirs.Runtime, dir); err != nil {
		return "", fmt.Errorf("make folder: %w", err)
	}
	return dir, nil
}

// makeFolders makes a folder below a root that others may pass through. A root
// that somebody else made could be anywhere.
func makeFolders(root, dir string) error {
	if err := os.MkdirAll(filepath.Dir(root), 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(root, 0o711); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := checkRoot(root); err != nil {
		return err
	}
	return os.MkdirAll(dir, 0o700)
}

func checkRoot(root string) error {
	fi, err := os.Lstat(root)
	if err != nil {
		return err
	}
	if !fi.IsDir() || int(fi.Sys().(*syscall.Stat_t).Uid) != os.Geteuid() || fi.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s is not a folder that only its owner, this user, can write to", root)
	}
	return nil
}

func (l *launch) createLog(name string) (*logFile, error) {
	f, err := createLog(filepath.Join(l.dir, name), l.host.log())
	if err != nil {
		return nil, err
	}
	l.undo.push(f.Close)
	return f, nil
}

// recordState tells in state.json what has come to run.
func (l *launch) recordState(context.Context) error {
	return l.record.update(func(s *State) {
		s.QEMU, s.Accel, s.NICs = l.process.cmd.Process.Pid, l.process.accel, l.status()
	})
}
