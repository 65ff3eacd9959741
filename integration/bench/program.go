package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// program is a running contender that says on its output how far it is.
type program struct {
	cmd     *exec.Cmd
	started time.Time // just before the fork
	lines   chan line
	said    []string
}

type line struct {
	text string
	at   time.Time
}

func startProgram(cmd *exec.Cmd) (*program, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	cmd.Stdout, cmd.Stderr = w, w
	p := &program{cmd: cmd, started: time.Now(), lines: make(chan line, 64)}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	go p.read(r)
	return p, nil
}

func (p *program) read(r *os.File) {
	defer close(p.lines)
	defer r.Close()
	for s := bufio.NewScanner(r); s.Scan(); {
		p.lines <- line{s.Text(), time.Now()}
	}
}

// await waits until the program has said a text and returns when it did.
func (p *program) await(ctx context.Context, text string) (time.Time, error) {
	for {
		select {
		case l, ok := <-p.lines:
			if !ok {
				return time.Time{}, fmt.Errorf("wait for %q: the program ended and said: %s", text, strings.Join(p.said, "; "))
			}
			if strings.Contains(l.text, text) {
				return l.at, nil
			}
			p.said = append(p.said, l.text)
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("wait for %q: %w", text, context.Cause(ctx))
		}
	}
}

// stop asks the program to end and returns when it was asked and when each of
// the processes was gone, the program itself last.
func (p *program) stop(ctx context.Context, pids ...int) (asked time.Time, gone []time.Time, err error) {
	ends := make([]<-chan time.Time, 0, len(pids)+1)
	for _, pid := range append(pids, p.cmd.Process.Pid) {
		end, err := watchEnd(ctx, pid)
		if err != nil {
			return asked, nil, err
		}
		ends = append(ends, end)
	}
	asked = time.Now()
	if err := p.cmd.Process.Signal(unix.SIGTERM); err != nil {
		return asked, nil, fmt.Errorf("stop program: %w", err)
	}
	for i, end := range ends {
		at, ok := <-end
		if !ok {
			return asked, nil, fmt.Errorf("stop program: process %d does not end", append(pids, p.cmd.Process.Pid)[i])
		}
		gone = append(gone, at)
	}
	for l := range p.lines {
		p.said = append(p.said, l.text)
	}
	p.cmd.Wait() // how it ended is each contender's own
	return asked, gone, nil
}

// watchEnd tells when a process ends, a child or not; the channel is closed
// without a time where ctx is done before.
func watchEnd(ctx context.Context, pid int) (<-chan time.Time, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	limit := -1
	if deadline, ok := ctx.Deadline(); ok {
		limit = int(time.Until(deadline).Milliseconds())
	}
	end := make(chan time.Time, 1)
	go func() {
		defer close(end)
		defer unix.Close(fd)
		for {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, limit)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if n > 0 {
				end <- time.Now()
			}
			return
		}
	}()
	return end, nil
}
