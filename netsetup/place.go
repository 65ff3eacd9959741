package netsetup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// place is where a process is: the inodes of its namespaces and, since inodes are
// given again, the cookie of that of networks. What it does to the host's network it
// does there, and only from there can it be undone.
type place struct {
	Net    uint64 `json:"net"`              // of networks: links, addresses, rules
	PID    uint64 `json:"pid"`              // of processes: who is in sight in /proc
	Cookie uint64 `json:"cookie,omitempty"` // of networks, too, and of no other until the next boot; 0: unknown
}

// sameNet tells whether two places are in one network namespace.
func (p place) sameNet(q place) bool { return p.Net == q.Net && !p.replacedBy(q) }

// replacedBy tells whether q is in a later network namespace, which has got the
// inode of one that is gone.
func (p place) replacedBy(q place) bool {
	return p.Net == q.Net && p.Cookie != q.Cookie && p.Cookie != 0 && q.Cookie != 0
}

// here is the place of this process: of the thread, since one that others are
// locked to may be anywhere.
func here() (p place, err error) {
	if p.Net, err = inodeOf("/proc/thread-self/ns/net"); err != nil {
		return p, err
	}
	if p.PID, err = inodeOf("/proc/thread-self/ns/pid"); err != nil {
		return p, err
	}
	p.Cookie, err = netCookie()
	return p, err
}

// netCookie is the number of this network namespace that no other one gets
// (SO_NETNS_COOKIE of linux/net/core/sock.c); 0 before Linux 5.14.
func netCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("look up namespace: %w", os.NewSyscallError("socket", err))
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	switch {
	case errors.Is(err, unix.ENOPROTOOPT):
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("look up namespace: %w", os.NewSyscallError("getsockopt", err))
	}
	return cookie, nil
}

func inodeOf(namespace string) (uint64, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(namespace, &st); err != nil {
		return 0, fmt.Errorf("look up namespace: %w", &os.PathError{Op: "stat", Path: namespace, Err: err})
	}
	return st.Ino, nil
}

// The namespaces that all others are below of, of users and of processes
// (PROC_USER_INIT_INO and PROC_PID_INIT_INO of linux/include/linux/proc_ns.h).
const (
	initialUsers = 0xEFFFFFFD
	initialPIDs  = 0xEFFFFFFC
)

// passes is how often the processes are gone through for new ones: on a busy host
// there always is one.
const passes = 5

// way is a file that leads into a network namespace: one that it is mounted on, or
// of a process that is in it, has it open or sees it mounted. Gone says that there
// is none: the kernel has taken the namespace away, with all that was in it, and
// may have given its inode to a later one. Where somebody could not be looked at it
// is not gone, although no way is found, unless it was of a session or container
// that is out of sight and takes it along.
func (p place) way() (path string, gone bool) {
	now, err := here()
	if err == nil && p.replacedBy(now) {
		return "", true
	}
	path, gone = p.wayByInode()
	if path != "" && p.Cookie != 0 && p.replacedAt(path) {
		return "", true
	}
	return path, gone
}

// replacedAt is replacedBy for where a path leads; false also where this process
// may not go.
func (p place) replacedAt(path string) (replaced bool) {
	there, err := os.Open(path)
	if err != nil {
		return false
	}
	defer there.Close()
	var visit sync.WaitGroup
	visit.Go(func() {
		runtime.LockOSThread()
		away := false
		home, err := os.Open("/proc/thread-self/ns/net")
		if err == nil && unix.Setns(int(there.Fd()), unix.CLONE_NEWNET) == nil {
			now, err := here()
			replaced = err == nil && p.replacedBy(now)
			away = unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) != nil
		}
		home.Close()
		if !away { // else the thread ends
			runtime.UnlockOSThread()
		}
	})
	visit.Wait()
	return replaced
}

// wayByInode is way without the cookie.
func (p place) wayByInode() (path string, gone bool) {
	name := fmt.Sprintf("net:[%d]", p.Net)
	path, err := mountedOn("/proc/self", name)
	if path != "" || err != nil {
		return path, false
	}
	all := p.inSight()
	seen := map[string]bool{}
	for range passes {
		tasks, err := newTasks(seen)
		if err != nil {
			return "", false
		}
		if len(tasks) == 0 {
			return "", all || p.isContained()
		}
		for _, task := range tasks {
			path, err := leads(task, name)
			if path != "" {
				return path, false
			}
			all = all && err == nil
		}
	}
	return "", p.isContained()
}

// isRootless tells whether this process is in a user namespace that somebody has
// made, as sessions of pasta and of unshare --user are.
func isRootless() bool {
	users, err := inodeOf("/proc/thread-self/ns/user")
	return err == nil && users != initialUsers
}

// isContained tells whether the place was a session's or container's that is not
// this one: what it has left is nobody's after its end, and in nobody's way before.
func (p place) isContained() bool {
	now, err := here()
	if err != nil {
		return false
	}
	return isRootless() || p.PID != initialPIDs && p.PID != now.PID && now.PID != initialPIDs
}

// inSight tells whether who may be in the network namespace is in sight here: all
// processes are, or those beside whom the network was brought up.
func (p place) inSight() bool {
	now, err := here()
	if err != nil || now.PID != initialPIDs && now.PID != p.PID {
		return false
	}
	_, err = inodeOf("/proc/1/ns/net") // with hidepid (proc(5)) others' are not even listed
	return err == nil
}

// newTasks are the folders of the threads that were not seen before: one that
// was missed because it began meanwhile is among the next.
func newTasks(seen map[string]bool) ([]string, error) {
	processes, err := entries("/proc")
	var all []string
	for _, process := range processes {
		tasks, err := entries(filepath.Join(process, "task"))
		if err != nil {
			return nil, err
		}
		for _, task := range tasks {
			if !seen[task] {
				seen[task] = true
				all = append(all, task)
			}
		}
	}
	return all, err
}

// entries are the paths of a folder's entries that are numbers; none of a process
// that has ended.
func entries(dir string) ([]string, error) {
	found, err := os.ReadDir(dir)
	var all []string
	for _, e := range found {
		if _, err := strconv.Atoi(e.Name()); err == nil {
			all = append(all, filepath.Join(dir, e.Name()))
		}
	}
	return all, ignoreEnded(err)
}

// ignoreEnded leaves out what proc(5) says of a process that has ended.
func ignoreEnded(err error) error {
	for _, ended := range []error{fs.ErrNotExist, unix.ESRCH, unix.EINVAL} {
		if errors.Is(err, ended) {
			return nil
		}
	}
	return err
}

// leads is where a thread leads into a namespace: it is in it, or its process has
// it open or sees it mounted.
func leads(task, name string) (string, error) {
	process := filepath.Dir(filepath.Dir(task))
	first := filepath.Base(process) == filepath.Base(task)
	if first {
		task = process
	}
	in := filepath.Join(task, "ns/net")
	target, err := os.Readlink(in)
	if err != nil {
		return "", ignoreEnded(err)
	}
	if target == name {
		return in, nil
	}
	if !first {
		return "", nil // its process's first thread tells the rest
	}
	files, err := entries(filepath.Join(process, "fd"))
	for _, path := range files {
		if target, _ := os.Readlink(path); target == name {
			return path, nil
		}
	}
	point, mountErr := mountedOn(process, name)
	if point != "" {
		return filepath.Join(process, "root", point), nil
	}
	return "", errors.Join(err, mountErr)
}

// mountedOn is where a process sees a namespace mounted (proc_pid_mountinfo(5)).
func mountedOn(process, name string) (string, error) {
	text, err := os.ReadFile(filepath.Join(process, "mountinfo"))
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 && f[3] == name {
			return f[4], nil
		}
	}
	return "", ignoreEnded(err)
}
