package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// execs tells when certain programs are executed, without touching them or who
// executes them (fanotify(7), FAN_OPEN_EXEC).
type execs struct {
	file   *os.File
	events chan execution
}

// execution is one program's begin.
type execution struct {
	path string
	pid  int
	at   time.Time
}

// watchExecs watches the programs at the paths, which are free of symbolic
// links. The caller closes it.
func watchExecs(paths ...string) (*execs, error) {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("watch executions: %w", err)
	}
	e := &execs{file: os.NewFile(uintptr(fd), "fanotify"), events: make(chan execution, 64)}
	for _, path := range paths {
		if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD, unix.FAN_OPEN_EXEC, unix.AT_FDCWD, path); err != nil {
			return nil, errors.Join(fmt.Errorf("watch executions of %s: %w", path, err), e.file.Close())
		}
	}
	go e.read()
	return e, nil
}

func (e *execs) close() error { return e.file.Close() }

// read passes executions on until the file is closed.
func (e *execs) read() {
	defer close(e.events)
	buffer := make([]byte, 4096)
	for {
		n, err := e.file.Read(buffer)
		if err != nil {
			return
		}
		now := time.Now()
		events := bytes.NewReader(buffer[:n])
		var m unix.FanotifyEventMetadata
		for binary.Read(events, binary.NativeEndian, &m) == nil {
			path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", m.Fd))
			unix.Close(int(m.Fd))
			// Number 0 is a process outside of this process namespace.
			if err == nil && m.Pid != 0 {
				e.events <- execution{path: path, pid: int(m.Pid), at: now}
			}
		}
	}
}

// next waits for the next execution, which has to be that of the path.
func (e *execs) next(ctx context.Context, path string) (execution, error) {
	select {
	case x, ok := <-e.events:
		if !ok || x.path != path {
			return x, fmt.Errorf("wait for execution of %s: got %q", path, x.path)
		}
		return x, nil
	case <-ctx.Done():
		return execution{}, fmt.Errorf("wait for execution of %s: %w", path, context.Cause(ctx))
	}
}
