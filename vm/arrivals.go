package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Arrivals calls f with each machine of a host that lives, and until ctx ends with
// each that starts, as soon as its control socket can be asked. Ready, if it is not
// nil, is called between the two. F is called by one goroutine, so it should not
// wait.
func Arrivals(ctx context.Context, h Host, ready func(), f func(Machine)) error {
	w, err := newArrivals(h)
	if err != nil {
		return fmt.Errorf("watch for virtual machines: %w", err)
	}
	defer w.events.Close()
	defer context.AfterFunc(ctx, func() { w.events.Close() })()
	living, err := List(ctx, h)
	if err != nil {
		return err
	}
	for _, m := range living {
		if m.Alive() && w.isNew(m.Dir) {
			f(m)
		}
	}
	if ready != nil {
		ready()
	}
	for {
		changed, err := w.wait()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("watch for virtual machines: %w", err)
		}
		for _, name := range changed {
			if m, ok := find(ctx, h, name); ok && m.Alive() && w.isNew(m.Dir) {
				f(m)
			}
		}
	}
}

// arrivals watches the folders of machines for control sockets (inotify(7)).
type arrivals struct {
	root    string
	fd      int
	events  *os.File
	folders map[int32]string // names, by the watch of each
	sockets map[string]socketID
}

// socketID tells a socket from one that is bound later in its place.
type socketID struct {
	inode uint64
	bound time.Time
}

func newArrivals(h Host) (*arrivals, error) {
	w := &arrivals{root: vmsFolder(h.Dirs.Runtime), folders: map[int32]string{}, sockets: map[string]socketID{}}
	if err := makeFolders(h.Dirs.Runtime, w.root); err != nil {
		return nil, err
	}
	var err error
	if w.fd, err = unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK); err != nil {
		return nil, err
	}
	w.events = os.NewFile(uintptr(w.fd), "inotify")
	if _, err = unix.InotifyAddWatch(w.fd, w.root, unix.IN_CREATE|unix.IN_ONLYDIR); err == nil {
		var known []string
		known, err = names(w.root)
		for _, name := range known {
			err = errors.Join(err, w.watch(name))
		}
	}
	if err != nil {
		return nil, errors.Join(err, w.events.Close())
	}
	return w, nil
}

// watch watches a machine's folder. A socket gets its mode when it listens
// (wire.Listen), so that is what is watched for.
func (w *arrivals) watch(name string) error {
	n, err := unix.InotifyAddWatch(w.fd, filepath.Join(w.root, name), unix.IN_ATTRIB|unix.IN_ONLYDIR)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil // it has gone again, or is none
	}
	if err != nil {
		return &os.PathError{Op: "watch", Path: filepath.Join(w.root, name), Err: err}
	}
	w.folders[int32(n)] = name
	return nil
}

// wait waits for changes and returns the machines that may have begun to live.
func (w *arrivals) wait() ([]string, error) {
	buf := make([]byte, 64*(unix.SizeofInotifyEvent+unix.NAME_MAX+1))
	n, err := w.events.Read(buf)
	if err != nil {
		return nil, err
	}
	var changed []string
	for rest := buf[:n]; len(rest) >= unix.SizeofInotifyEvent; {
		e := (*unix.InotifyEvent)(unsafe.Pointer(&rest[0]))
		name := unix.ByteSliceToString(rest[unix.SizeofInotifyEvent : unix.SizeofInotifyEvent+int(e.Len)])
		rest = rest[unix.SizeofInotifyEvent+int(e.Len):]
		folder, known := w.folders[e.Wd]
		switch {
		case e.Mask&unix.IN_IGNORED != 0:
			delete(w.folders, e.Wd)
		case known && name == SocketFile:
			changed = append(changed, folder)
		case e.Mask&(unix.IN_CREATE|unix.IN_ISDIR) == unix.IN_CREATE|unix.IN_ISDIR:
			if err := w.watch(name); err != nil {
				return nil, err
			}
			changed = append(changed, name) // it may live since before it was watched
		}
	}
	return changed, nil
}

// isNew tells that the socket in a machine's folder was not there the last time.
func (w *arrivals) isNew(dir string) bool {
	fi, err := os.Stat(filepath.Join(dir, SocketFile))
	if err != nil {
		return false // its change is told when it is there
	}
	id := socketID{fi.Sys().(*syscall.Stat_t).Ino, fi.ModTime()}
	if w.sockets[dir] == id {
		return false
	}
	w.sockets[dir] = id
	return true
}
