package guest

import (
	"errors"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// children starts processes and tells how each ended. As process 1 has to reap
// all orphans too, it does not use os/exec, which would find its processes'
// statuses taken.
type children struct {
	mu      sync.Mutex // held while a process is started, so that none ends unknown
	waiting map[int]chan<- unix.WaitStatus
	died    chan os.Signal // has an item where a process may have ended
}

func newChildren() *children {
	c := &children{waiting: map[int]chan<- unix.WaitStatus{}, died: make(chan os.Signal, 1)}
	signal.Notify(c.died, unix.SIGCHLD)
	return c
}

// start starts a process; ended gets its status once.
func (c *children) start(path string, argv []string, attr *syscall.ProcAttr) (pid int, ended <-chan unix.WaitStatus, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	pid, err = syscall.ForkExec(path, argv, attr)
	if err != nil {
		return 0, nil, err
	}
	ch := make(chan unix.WaitStatus, 1)
	c.waiting[pid] = ch
	return pid, ch, nil
}

// reap collects ended processes, orphans too, for ever. It does not wait within
// the kernel: on a machine with one processor that would keep all else from
// running until Go's scheduler notices, which takes it up to 10 ms.
func (c *children) reap() {
	for range c.died {
		for c.reapOne() {
		}
	}
}

// reapOne collects one process that has ended; it tells whether there was one.
func (c *children) reapOne() bool {
	var status unix.WaitStatus
	pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
	switch {
	case errors.Is(err, unix.EINTR):
		return true
	case errors.Is(err, unix.ECHILD), err == nil && pid == 0:
		return false
	case err != nil:
		panic("wait for processes: " + err.Error())
	}
	c.ended(pid, status)
	return true
}

func (c *children) ended(pid int, status unix.WaitStatus) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ch, ok := c.waiting[pid]; ok {
		delete(c.waiting, pid)
		ch <- status
	}
}

// signal sends a signal to the process group of a process that start has
// started as the leader of one. A group that is gone is none of another's: its
// number is not given out again before the process was reaped.
func (c *children) signal(pid int, s unix.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.waiting[pid]; !ok {
		return os.ErrProcessDone
	}
	return unix.Kill(-pid, s)
}
