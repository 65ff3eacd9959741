package netsetup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrNotOpened says that root does not run a network.
var ErrNotOpened = errors.New("root does not run it")

// ClosedError says that root runs a network, but not for this user.
type ClosedError struct {
	Group string // whose members may join; "": root alone
}

func (e *ClosedError) Error() string {
	if e.Group == "" {
		return "root runs it, for itself alone"
	}
	return fmt.Sprintf("root runs it for group %s, which you are not in", e.Group)
}

// CheckOpened looks whether an ordinary user could join a network of root's. It
// is nil if so, ErrNotOpened or a *ClosedError if not. Nothing is changed, and
// nobody asked: the network's keeper has the last word.
func CheckOpened(h Host, spec Spec) error {
	dir, guest := h.folder(spec)
	if !guest {
		return ErrNotOpened
	}
	return checkSocket(filepath.Join(dir, socketName))
}

// checkSocket tells by a socket's mode who may connect.
func checkSocket(path string) error {
	err := unix.Access(path, unix.W_OK)
	if !errors.Is(err, unix.EACCES) {
		return err
	}
	fi, err := os.Stat(path)
	if err != nil {
		return err
	}
	if fi.Mode().Perm()&0o060 == 0 {
		return &ClosedError{}
	}
	gid := strconv.FormatUint(uint64(fi.Sys().(*syscall.Stat_t).Gid), 10)
	if g, err := user.LookupGroupId(gid); err == nil {
		return &ClosedError{g.Name}
	}
	return &ClosedError{gid}
}

// folder is the network's, and whether it is another user's: root's, where root
// runs it and this process could not.
func (h Host) folder(spec Spec) (dir string, guest bool) {
	if h.RootRuntime != "" {
		dir := filepath.Join(netsFolder(h.RootRuntime), spec.folder())
		if exists(filepath.Join(dir, socketName)) {
			return dir, true
		}
	}
	return filepath.Join(netsFolder(h.Runtime), spec.folder()), false
}

// connectGuest reaches the keeper of root's network. One that has died is waited
// for: root's holder starts another.
func connectGuest(ctx context.Context, dir string) (*net.UnixConn, error) {
	ctx, cancel := context.WithTimeout(ctx, closingTimeout)
	defer cancel()
	path := filepath.Join(dir, socketName)
	for {
		changed, stop, err := watchFile(path)
		if err != nil {
			return nil, guestError(path, err)
		}
		conn, err := dialKeeper(dir)
		if !nobodyListens(err) {
			stop()
			return conn, guestError(path, err)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			err = fmt.Errorf("wait for root to start its keeper again: %w", context.Cause(ctx))
		}
		stop()
		if ctx.Err() != nil {
			return nil, err
		}
	}
}

// guestError says why a network of root's can't be had.
func guestError(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return ErrNotOpened
	case errors.Is(err, fs.ErrPermission):
		if closed := checkSocket(path); closed != nil {
			return closed
		}
	}
	return err
}

// watchFile tells of the first change of what a path leads to, its replacement
// and removal included (inotify(7)). It takes the right to read it.
func watchFile(path string) (changed <-chan struct{}, stop func(), err error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, nil, fmt.Errorf("watch %s: %w", path, err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_ATTRIB|unix.IN_DELETE_SELF|unix.IN_MOVE_SELF); err != nil {
		events.Close()
		return nil, nil, &os.PathError{Op: "watch", Path: path, Err: err}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		var event [unix.SizeofInotifyEvent + unix.NAME_MAX + 1]byte
		events.Read(event[:])
	}()
	return done, func() { events.Close(); <-done }, nil
}
