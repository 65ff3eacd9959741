package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gofrs/flock"

	"github.com/vmrun/vmrun/profiles"
	"github.com/vmrun/vmrun/vm/wire"
)

// Machine is a virtual machine of this host as it is found from outside,
// whichever process launched it.
type Machine struct {
	State
	Dir string // its folder, with its logs
	Err error  // why State has nothing but the name; nil: it was read
}

// UnknownError says that there is no machine of a name.
type UnknownError struct {
	Name string
	Near string // a machine that may have been meant, or ""
}

func (e *UnknownError) Error() string {
	if e.Near != "" {
		return fmt.Sprintf("no virtual machine %q; did you mean %s?", e.Name, e.Near)
	}
	return fmt.Sprintf("no virtual machine %q", e.Name)
}

// List returns all machines of a host, by name: those that live, those that
// died without a word, and those that have ended and were kept. It changes
// nothing.
func List(ctx context.Context, h Host) ([]Machine, error) {
	live, err := names(vmsFolder(h.Dirs.Runtime))
	if err != nil {
		return nil, fmt.Errorf("list virtual machines: %w", err)
	}
	kept, err := names(vmsFolder(h.Dirs.State))
	if err != nil {
		return nil, fmt.Errorf("list virtual machines: %w", err)
	}
	all := append(live, kept...)
	slices.Sort(all)
	var found []Machine
	for _, name := range slices.Compact(all) {
		if m, ok := find(ctx, h, name); ok {
			found = append(found, m)
		}
	}
	return found, nil
}

// names are the folders in a folder.
func names(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var all []string
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
			all = append(all, e.Name())
		}
	}
	return all, nil
}

// Open finds the machine of a name. Where there is none the error is an
// *UnknownError.
func Open(ctx context.Context, h Host, name string) (Machine, error) {
	if m, ok := find(ctx, h, name); ok {
		return m, nil
	}
	all, err := List(ctx, h)
	if err != nil {
		return Machine{}, err
	}
	var known []string
	for _, m := range all {
		known = append(known, m.Name)
	}
	return Machine{}, &UnknownError{Name: name, Near: profiles.Nearest(name, known)}
}

// find looks for a machine that lives or died, and then for one that was kept.
func find(ctx context.Context, h Host, name string) (Machine, bool) {
	if name == "" || name != filepath.Base(name) || strings.HasPrefix(name, ".") {
		return Machine{}, false
	}
	dir := filepath.Join(vmsFolder(h.Dirs.Runtime), name)
	for range 3 { // it may begin or end while it is looked at
		s, err := readState(filepath.Join(dir, stateFile))
		alive := isAlive(ctx, dir)
		absent := errors.Is(err, fs.ErrNotExist)
		m := Machine{State: s, Dir: dir, Err: err}
		m.Name = name
		switch {
		case alive && absent:
			m.Phase, m.Err = Starting, nil
			return m, true
		case alive:
			m.seeQEMU()
			return m, true
		case absent:
			return findKept(h, name)
		}
		m.Phase = Dead
		if again, err := readState(filepath.Join(dir, stateFile)); err == nil == (m.Err == nil) && again.Supervisor == s.Supervisor && !isAlive(ctx, dir) {
			return m, true
		}
	}
	return findKept(h, name)
}

func findKept(h Host, name string) (Machine, bool) {
	m := Machine{Dir: filepath.Join(vmsFolder(h.Dirs.State), name)}
	s, err := readState(filepath.Join(m.Dir, stateFile))
	if errors.Is(err, fs.ErrNotExist) || err == nil && s.End == nil {
		return Machine{}, false
	}
	m.State, m.Err = s, err
	m.Name, m.Phase = name, Ended
	return m, true
}

// Fate is what became of a machine that was found before: its phase while its
// supervisor lives, Dead, or Ended, kept or not.
func (m Machine) Fate(ctx context.Context) Phase {
	_, err := os.Stat(filepath.Join(m.Dir, stateFile))
	switch {
	case !m.Alive():
		return m.Phase
	case isAlive(ctx, m.Dir):
		return m.Phase
	case err != nil:
		return Ended
	}
	// It may have ended in order between the two looks.
	if _, err := os.Stat(filepath.Join(m.Dir, stateFile)); err != nil {
		return Ended
	}
	return Dead
}

// Alive tells whether the machine's supervisor lives.
func (m Machine) Alive() bool { return m.Phase != Dead && m.Phase != Ended }

// isAlive tells whether the supervisor of the machine in a folder lives: it
// listens at its socket, or holds its lock, and the kernel ends both with it. The
// socket is asked first, since whoever tries the lock holds it for a moment.
func isAlive(ctx context.Context, dir string) bool {
	conn, err := wire.Dial(ctx, dir, SocketFile)
	if err == nil {
		conn.Close()
		return true
	}
	if !wire.NobodyListens(err) {
		return !errors.Is(err, fs.ErrNotExist)
	}
	path := filepath.Join(dir, lockFile)
	if _, err := os.Stat(path); err != nil {
		return false
	}
	lock := flock.New(path)
	free, err := lock.TryRLock()
	if free {
		lock.Close()
	}
	return err == nil && !free
}

// seeQEMU finds out what the supervisor can't know: whether somebody stopped
// QEMU by a signal.
func (m *Machine) seeQEMU() {
	if s, err := readProcess(m.QEMU); err == nil && s.stopped() {
		m.Phase = Frozen
	}
}

// Client asks the machine's supervisor.
func (m Machine) Client() wire.Client { return wire.Client{Dir: m.Dir, Name: SocketFile} }
