package vm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"
)

// Sweep removes what launches that were killed recorded of their virtual
// machines, and returns a line for each. Machines that run are left alone, and
// so are logs, and locks, which would have two owners otherwise. It goes on
// past failures and returns all of them.
func Sweep(h Host) ([]string, error) {
	dir := filepath.Join(h.Dirs.Runtime, "vms")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = checkRoot(h.Dirs.Runtime)
	}
	if err != nil {
		return nil, fmt.Errorf("sweep virtual machines: %w", err)
	}
	var removed []string
	var errs []error
	for _, e := range entries {
		swept, err := sweepState(h, filepath.Join(dir, e.Name()))
		if swept {
			removed = append(removed, fmt.Sprintf("virtual machine %s: removed its state", e.Name()))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("sweep virtual machine %s: %w", e.Name(), err))
		}
	}
	return removed, errors.Join(errs...)
}

// sweepState removes the state of a machine whose lock nobody holds: the kernel
// gave it back when its owner died. One that was to be kept is. It tells whether
// there was one.
func sweepState(h Host, dir string) (swept bool, err error) {
	state := filepath.Join(dir, stateFile)
	left, err := filepath.Glob(state + "*") // a killed launch may have begun to write it
	if err != nil || len(left) == 0 {
		return false, err
	}
	lock := flock.New(filepath.Join(dir, lockFile))
	taken, err := lock.TryLock()
	if err != nil || !taken {
		return false, err
	}
	if s, readErr := readState(state); readErr == nil && s.Keep {
		s.Phase, s.End = Ended, &End{Code: exitKilled, Time: time.Now().Round(0), Error: "its supervisor was killed"}
		err = archive(h, dir, s)
	}
	for _, file := range []string{state, state + newSuffix, filepath.Join(dir, SocketFile)} {
		err = errors.Join(err, removeIfThere(file))
	}
	return true, errors.Join(err, lock.Close())
}
