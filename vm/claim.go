package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/gofrs/flock"
)

// state is what state.json says of a running virtual machine.
type state struct {
	Version    int         `json:"version"`
	Name       string      `json:"name"`
	Profile    string      `json:"profile"`
	Supervisor int         `json:"supervisor"` // process id
	QEMU       int         `json:"qemu"`       // process id
	Accel      string      `json:"accel"`
	NICs       []NICStatus `json:"nics,omitempty"`
}

const (
	stateVersion = 1
	stateFile    = "state.json"
	newSuffix    = ".new" // of the state while it is written
)

// claimName makes the virtual machine's folder and takes its lock. The lock is
// never unlinked: it would have two owners then. The logs stay too, until the
// next launch.
func (l *launch) claimName(context.Context) error {
	l.dir = filepath.Join(l.host.Dirs.Runtime, "vms", l.plan.Name)
	if err := makeFolders(l.host.Dirs.Runtime, l.dir); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	lock := flock.New(filepath.Join(l.dir, "lock"))
	taken, err := lock.TryLock()
	if err != nil {
		return fmt.Errorf("claim name: %w", err)
	}
	if !taken {
		return lacks(NeedName, "claim name: a virtual machine %q is running%s", l.plan.Name, l.owner())
	}
	l.undo.push(lock.Close)
	if l.qemuLog, err = l.createLog("qemu.log"); err != nil {
		return err
	}
	l.consoleLog, err = l.createLog("console.log")
	return err
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

// owner tells whose the name is, as far as the state says so.
func (l *launch) owner() string {
	data, err := os.ReadFile(l.statePath())
	var s state
	if err != nil || json.Unmarshal(data, &s) != nil || s.Supervisor == 0 {
		return ""
	}
	return fmt.Sprintf(" (process %d, profile %s)", s.Supervisor, s.Profile)
}

func (l *launch) createLog(name string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(l.dir, name), os.O_RDWR|os.O_CREATE|os.O_TRUNC|os.O_APPEND|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make log: %w", err)
	}
	l.undo.push(f.Close)
	return f, nil
}

func (l *launch) statePath() string { return filepath.Join(l.dir, stateFile) }

// recordState writes state.json, in one piece.
func (l *launch) recordState(context.Context) error {
	data, err := json.MarshalIndent(state{
		Version: stateVersion, Name: l.plan.Name, Profile: l.plan.Profile,
		Supervisor: os.Getpid(), QEMU: l.process.cmd.Process.Pid, Accel: l.process.accel, NICs: l.status(),
	}, "", "\t")
	if err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	temporary := l.statePath() + newSuffix
	l.undo.push(func() error { return removeIfThere(l.statePath()) })
	if err := os.WriteFile(temporary, append(data, '\n'), 0o600); err != nil {
		return errors.Join(fmt.Errorf("write state: %w", err), removeIfThere(temporary))
	}
	if err := os.Rename(temporary, l.statePath()); err != nil {
		return errors.Join(fmt.Errorf("write state: %w", err), removeIfThere(temporary))
	}
	return nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
