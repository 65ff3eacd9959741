package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// dyingPatience bounds the wait for a process that was killed. That takes
// milliseconds, and on a host without memory or time longer.
const dyingPatience = 5 * time.Second

// awaitKilled waits for the processes of a machine of a name that were killed
// and are not gone yet: they have its lock, its ports of the host and its images
// until the kernel is done with them. QEMU comes second, as it is killed by its
// supervisor's end. Who lives is not waited for.
func awaitKilled(ctx context.Context, h Host, name string) {
	s, err := readState(filepath.Join(vmsFolder(h.Dirs.Runtime), name, stateFile))
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, dyingPatience)
	defer cancel()
	for _, pid := range []int{s.Supervisor, s.QEMU} {
		awaitDying(ctx, pid)
	}
}

// awaitDying waits for the end of a process, if it was killed.
func awaitDying(ctx context.Context, pid int) {
	process, err := OpenProcess(pid)
	if err != nil {
		return
	}
	defer process.Close()
	// The descriptor keeps the number from being another process's by now.
	if wasKilled(pid) {
		_ = AwaitProcess(ctx, process) // ctx bounds it
	}
}

// OpenProcess returns a pidfd of a process (pidfd_open(2)), which the caller closes.
func OpenProcess(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // so that os waits for it by epoll
		return nil, errors.Join(fmt.Errorf("open process %d: %w", pid, err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// AwaitProcess waits for the end of a process that OpenProcess has opened, whoever
// its parent is. An error is the context's, or says that the file is closed.
func AwaitProcess(ctx context.Context, process *os.File) error {
	conn, err := process.SyscallConn()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { process.SetDeadline(time.Now()) })()
	err = conn.Read(func(fd uintptr) bool { return isReadable(int(fd)) })
	if ctx.Err() != nil && err != nil {
		return context.Cause(ctx)
	}
	return err
}

// isReadable tells whether a descriptor can be read now; a pidfd can be once the
// process has ended (pidfd_open(2)).
func isReadable(fd int) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return n > 0 && err == nil
}

// wasKilled tells whether a process was sent SIGKILL: it stays pending until the
// kernel is done with the process (proc_pid_status(5)).
func wasKilled(pid int) bool {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return false
	}
	for line := range bytes.Lines(text) {
		key, value, _ := bytes.Cut(line, []byte(":"))
		if string(key) != "ShdPnd" {
			continue
		}
		pending, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 16, 64)
		return err == nil && pending&(1<<(unix.SIGKILL-1)) != 0
	}
	return false
}
