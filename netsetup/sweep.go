package netsetup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Sweep undoes what networks left behind whose keeper and members are dead, and
// returns a line for each thing that it removed. Networks in use are left
// alone, and so is everything that no journal of ours names. It goes on past
// failures and returns all of them.
func Sweep(ctx context.Context, h Host) ([]string, error) {
	folders, err := os.ReadDir(netsFolder(h.Runtime))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("sweep networks: %w", err)
	}
	var report []string
	var errs []error
	inUse := false
	for _, d := range folders {
		if ctx.Err() != nil {
			return report, context.Cause(ctx)
		}
		dir := filepath.Join(netsFolder(h.Runtime), d.Name())
		lines, err := sweepNetwork(h, dir)
		report = append(report, lines...)
		if err := errors.Join(err, sweepSocket(dir)); err != nil {
			errs = append(errs, fmt.Errorf("sweep network %s: %w", d.Name(), err))
		}
		inUse = inUse || exists(filepath.Join(dir, "journal"))
	}
	if inUse {
		return report, errors.Join(errs...) // whose forwarding it is, its journal knows
	}
	lines, err := sweepClaims(h)
	return append(report, lines...), errors.Join(append(errs, err)...)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// sweepSocket removes a socket that nobody listens at. Under the spawn lock no
// other takes its place meanwhile.
func sweepSocket(dir string) error {
	if !exists(filepath.Join(dir, socketName)) {
		return nil
	}
	lock, err := lockFile(filepath.Join(dir, "spawn.lock"), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil // somebody is just starting a keeper
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	conn, err := dialKeeper(dir)
	if nobodyListens(err) {
		return removeIfThere(filepath.Join(dir, socketName))
	}
	if err == nil {
		conn.Close()
	}
	return nil
}

// sweepNetwork undoes the journal in one network's folder, if nobody holds the
// network and no TAP of it is left.
func sweepNetwork(h Host, dir string) ([]string, error) {
	if !exists(filepath.Join(dir, "journal")) {
		return nil, nil
	}
	lock, err := lockFile(filepath.Join(dir, "lock"), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, nil // its keeper lives
	}
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	real, err := newHost(lock)
	if err != nil {
		return nil, err
	}
	defer real.close()
	claims, err := newClaims(h.Runtime)
	if err != nil {
		return nil, err
	}
	return sweepJournal(h, dir, &effects{kernel: real, claims: claims})
}

func sweepJournal(h Host, dir string, w *effects) ([]string, error) {
	j, err := openJournal(dir, slog.New(slog.DiscardHandler)) // the report tells it
	if err != nil {
		return nil, err
	}
	links, err := w.kernel.Links()
	if err != nil {
		return nil, errors.Join(err, j.file.Close())
	}
	for _, e := range j.ports() {
		if slices.ContainsFunc(links, func(l Link) bool { return l.Name == e.Port.Link }) {
			h.log().Info("a VM still runs on it", "network", filepath.Base(dir), "vm", e.Port.Spec.VM)
			return nil, j.file.Close()
		}
	}
	var report []string
	for _, u := range j.undos() {
		report = append(report, fmt.Sprintf("network %s: %s", filepath.Base(dir), u))
	}
	slices.Sort(report)
	err = j.undo(w)
	if len(j.entries) == 0 {
		err = errors.Join(err, removeIfThere(filepath.Join(dir, "spec.json")))
	}
	return report, errors.Join(err, j.close())
}

// sweepClaims restores forwarding that no living network needs.
func sweepClaims(h Host) ([]string, error) {
	dir, err := hostFolder(h.Runtime)
	if err != nil {
		return nil, err
	}
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("sweep host claims: %w", err)
	}
	real, err := newHost(nil)
	if err != nil {
		return nil, err
	}
	defer real.close()
	c := &claims{dir: dir, held: map[string]*os.File{}}
	var report []string
	var errs []error
	for _, f := range files {
		link, ok := strings.CutPrefix(f.Name(), "forwarding-")
		if fi, err := f.Info(); !ok || err != nil || fi.Size() == 0 {
			continue
		}
		restored, err := c.sweep(real, link)
		if restored {
			report = append(report, "restored forwarding of "+link)
		}
		errs = append(errs, err)
	}
	return report, errors.Join(errs...)
}

// sweep restores a link that nobody claims; it tells whether it did.
func (c *claims) sweep(k kernel, link string) (bool, error) {
	f, err := lockFile(c.path(link), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	f.Close()
	return true, c.unforward(k, link)
}
