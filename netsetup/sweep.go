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
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/netsetup/firewall"
)

// Sweep undoes what networks left behind whose keeper and members are dead, and
// returns a line for each thing that it removed. Networks in use are left
// alone, and so is everything that no journal of ours names. It goes on past
// failures and returns all of them. What has to be undone in another network
// namespace is an *ElsewhereError.
func Sweep(ctx context.Context, h Host) ([]string, error) {
	dirs, err := networkFolders(h.Runtime)
	if err != nil {
		return nil, err
	}
	report, errs := sweepAll(ctx, h, dirs)
	return report, errors.Join(errs...)
}

// asidePatience is how long SweepAside waits for what is just dying. That is a
// few milliseconds for a keeper and some tens for QEMU.
const asidePatience = 500 * time.Millisecond

// SweepAside is Sweep for commands that are about something else. It soon gives
// up waiting, and leaves that to the next one without an error; where nothing is
// left behind it only reads the folders. Networks of other network namespaces are
// left alone.
func SweepAside(ctx context.Context, h Host) ([]string, error) {
	dirs, err := networkFolders(h.Runtime)
	if err != nil {
		return nil, err
	}
	dirs = slices.DeleteFunc(dirs, func(dir string) bool { return !h.hasJournalHere(dir) })
	ctx, cancel := context.WithTimeoutCause(ctx, asidePatience, errGaveUp)
	defer cancel()
	report, errs := sweepAll(ctx, h, dirs)
	errs = slices.DeleteFunc(errs, func(err error) bool { return errors.Is(err, errGaveUp) })
	return report, errors.Join(errs...)
}

var errGaveUp = errors.New("somebody is still dying")

// sweepAll sweeps the networks in folders, all at once: where several have to be
// waited for, that takes as long as one. What nobody claims of the host is
// restored where no network is in use.
func sweepAll(ctx context.Context, h Host, dirs []string) ([]string, []error) {
	reports, errs := make([][]string, len(dirs)), make([]error, len(dirs))
	var all sync.WaitGroup
	for i, dir := range dirs {
		all.Go(func() {
			lines, err := sweepNetwork(ctx, h, dir)
			if !errors.As(err, new(*ElsewhereError)) { // whose members may just be about to start a keeper
				err = errors.Join(err, sweepSocket(dir))
			}
			if err != nil {
				err = fmt.Errorf("sweep network %s: %w", filepath.Base(dir), err)
			}
			reports[i], errs[i] = lines, err
		})
	}
	all.Wait()
	report := slices.Concat(reports...)
	dirs, err := networkFolders(h.Runtime)
	if err != nil || slices.ContainsFunc(dirs, h.hasJournalHere) {
		return report, append(errs, err) // whose forwarding it is, its journal knows
	}
	lines, err := sweepClaims(h)
	return append(report, lines...), append(errs, err)
}

// hasJournal tells whether there is something to undo of a network: its journal is
// there, or its spec.json, which says that somebody has removed that.
func hasJournal(dir string) bool {
	return exists(filepath.Join(dir, "journal")) || exists(filepath.Join(dir, specName))
}

// hasJournalHere is hasJournal for what has to be undone in this network namespace.
func (h Host) hasJournalHere(dir string) bool {
	return hasJournal(dir) && !elsewhere(dir) && !h.namedElsewhere(dir)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// sweepSocket removes a socket that nobody listens at. Under the spawn lock no
// other takes its place meanwhile.
func sweepSocket(dir string) error {
	if !exists(filepath.Join(dir, socketName)) && !exists(filepath.Join(dir, newSocketName)) {
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
	if err := removeIfThere(filepath.Join(dir, newSocketName)); err != nil {
		return err
	}
	conn, err := dialKeeper(dir)
	if nobodyListens(err) {
		return removeIfThere(filepath.Join(dir, socketName))
	}
	if err == nil {
		conn.Close()
	}
	return nil
}

// dyingTimeout is how long a sweep waits for who is about to die, or about to
// start another keeper, and dyingPause how often it looks.
const (
	dyingTimeout = 2 * time.Second
	dyingPause   = 20 * time.Millisecond
)

// sweepNetwork undoes the journal in one network's folder, if nobody holds the
// network and no TAP of it is left. A TAP without keeper is that of a QEMU which
// is just dying with its supervisor, or of members that are about to start
// another keeper: either shows soon.
func sweepNetwork(ctx context.Context, h Host, dir string) ([]string, error) {
	limit := time.After(dyingTimeout)
	for {
		report, orphan, err := sweepOnce(ctx, h, dir)
		if orphan == "" || err != nil {
			return report, err
		}
		select {
		case <-time.After(dyingPause):
		case <-limit:
			h.log().Warn("a VM without supervisor still runs on it", "network", filepath.Base(dir), "vm", orphan)
			return nil, nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// sweepOnce is sweepNetwork without the wait; orphan is a VM whose TAP is there
// although the network has no keeper.
func sweepOnce(ctx context.Context, h Host, dir string) (report []string, orphan string, err error) {
	if !hasJournal(dir) {
		return nil, "", nil
	}
	lock, err := lockDead(ctx, dir)
	if lock == nil || err != nil {
		return nil, "", err
	}
	defer lock.Close()
	if report, err := forgetGone(h, dir); report != nil || err != nil {
		return report, "", err
	}
	real, err := newHost(lock)
	if err != nil {
		return nil, "", err
	}
	defer real.close()
	claims, err := newClaims(h.Runtime)
	if err != nil {
		return nil, "", err
	}
	return sweepJournal(h, dir, &effects{kernel: real, claims: claims})
}

// lockDead takes the lock of a network without keeper; nil where one lives. A
// lock that is held while nobody listens is a dying keeper's, or that of a
// child that outlived it and is still at the rules: that is waited for.
func lockDead(ctx context.Context, dir string) (*os.File, error) {
	return lockAfter(ctx, dir, keeperDead, firewall.Timeout)
}

// awaitGone waits until a closing keeper has ended, which frees its lock. The next
// one may have that by then.
func awaitGone(ctx context.Context, dir string) error {
	lock, err := lockAfter(ctx, dir, keeperSilent, closingTimeout)
	if err != nil {
		return fmt.Errorf("wait for the network's end: %w", err)
	}
	if lock == nil {
		return nil
	}
	return lock.Close()
}

// lockPause is how often a lock is tried. Who waits in flock(2) instead may find
// that the next keeper was quicker, and keeps the lock as long as it lives.
const lockPause = time.Millisecond

// lockAfter takes a network's lock once it is free; nil where the network has a
// keeper that stands better than one that is waited for.
func lockAfter(ctx context.Context, dir string, waitedFor standing, limit time.Duration) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	path := filepath.Join(dir, "lock")
	for {
		lock, err := lockFile(path, unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return lock, err
		}
		s, err := askStanding(ctx, dir)
		if ctx.Err() == nil && (s > waitedFor || err != nil) {
			return nil, err
		}
		select {
		case <-time.After(lockPause):
		case <-ctx.Done():
			return nil, fmt.Errorf("lock %s: %w", path, context.Cause(ctx))
		}
	}
}

// standing is how a network's keeper is.
type standing int

const (
	keeperDead   standing = iota // or killed, and waiting for the kernel with its last request: it listens until then
	keeperEnding                 // its network is gone, or going
	keeperSilent                 // it was stopped, say, or waits for the end of the one before it
	keeperLiving                 // so it has the lock
)

func askStanding(ctx context.Context, dir string) (standing, error) {
	conn, err := dialKeeper(dir)
	if nobodyListens(err) {
		return keeperDead, nil
	}
	if err != nil {
		return keeperLiving, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, dyingTimeout)
	defer cancel()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })()
	var answer reply
	if err = send(conn, request{Protocol: protocolVersion, Ping: true}, nil); err == nil {
		answer, err = receiveAnswer(conn)
	}
	switch {
	case hungUp(err):
		return keeperDead, nil
	case err != nil:
		return keeperSilent, nil
	case answer.Closing:
		return keeperEnding, nil
	}
	return keeperLiving, nil
}

func sweepJournal(h Host, dir string, w *effects) (report []string, orphan string, err error) {
	j, err := openJournal(dir, slog.New(slog.DiscardHandler)) // the report tells it
	if err != nil {
		return nil, "", err
	}
	j.by = h.Version
	if err := j.restore(h, w); err != nil {
		return nil, "", errors.Join(err, j.file.Close())
	}
	links, err := w.kernel.Links()
	if err != nil {
		return nil, "", errors.Join(err, j.file.Close())
	}
	for _, e := range j.ports() {
		if slices.ContainsFunc(links, func(l Link) bool { return l.Name == e.Port.Link && !l.Persistent }) {
			return nil, e.Port.Spec.VM, j.file.Close()
		}
	}
	for _, u := range j.undos() {
		report = append(report, fmt.Sprintf("network %s: %s", filepath.Base(dir), u))
	}
	slices.Sort(report)
	return report, "", j.undoLast(w)
}

// settleFolder removes from a network's folder what is there while it is up.
func settleFolder(dir string) error {
	return errors.Join(removeWritten(filepath.Join(dir, specName)), settleHold(dir))
}

// sweepClaims restores forwarding that no living network needs.
func sweepClaims(h Host) ([]string, error) {
	c, err := claimsHere(h.Runtime)
	if err != nil {
		return nil, err
	}
	files, err := os.ReadDir(c.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("sweep host claims: %w", err)
	}
	files = slices.DeleteFunc(files, func(f fs.DirEntry) bool {
		fi, err := f.Info()
		return err != nil || fi.Size() == 0
	})
	if len(files) == 0 {
		return nil, nil
	}
	real, err := newHost(nil)
	if err != nil {
		return nil, err
	}
	defer real.close()
	var report []string
	var errs []error
	for _, f := range files {
		line, err := c.sweepFile(real, f.Name())
		if line != "" {
			report = append(report, line)
		}
		errs = append(errs, err)
	}
	return report, errors.Join(errs...)
}

// sweepFile restores what a claim's file says and nobody claims; it returns what
// it did, "" for nothing.
func (c *claims) sweepFile(k kernel, name string) (string, error) {
	if link, ok := strings.CutPrefix(name, "forwarding-"); ok {
		restored, err := c.sweep(k, link)
		if restored {
			return "restored forwarding of " + link, err
		}
		return "", err
	}
	if uuid, ok := strings.CutPrefix(name, libvirtPrefix); ok && !strings.HasSuffix(name, ".lock") {
		return c.sweepLibvirt(k, uuid)
	}
	return "", nil
}

// sweep restores a link that nobody claims; it tells whether there was something
// to restore.
func (c *claims) sweep(k kernel, link string) (bool, error) {
	f, err := lockFile(c.path(link), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	_, recorded := c.read(f)
	f.Close()
	return recorded, c.unforward(k, link)
}
