package guest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/images/guest/wire"
)

// process is a command that the host has started.
type process struct {
	children *children
	pid      int
	ended    <-chan unix.WaitStatus
	stdin    *os.File // the terminal, where it has one
	stdout   *os.File // the same
	stderr   *os.File // nil: with a terminal there is none
	done     chan struct{}
}

// start starts a command.
func (a *agent) start(e wire.Exec) (_ *process, err error) {
	if len(e.Argv) == 0 {
		return nil, errors.New("no command")
	}
	env := append(slices.Clip(a.env), e.Env...)
	path, err := lookPath(e.Argv[0], e.Dir, env)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.Argv[0], err)
	}
	p := &process{children: a.children, done: make(chan struct{})}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	theirs, err := p.open(e.TTY)
	defer closeAll(theirs)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.Argv[0], err)
	}
	attr := &syscall.ProcAttr{Dir: e.Dir, Env: env, Sys: &syscall.SysProcAttr{Setsid: true}}
	if attr.Dir == "" {
		attr.Dir = "/"
	}
	for _, f := range theirs {
		fd := f.Fd()
		if err := unix.SetNonblock(int(fd), false); err != nil {
			return nil, fmt.Errorf("%s: %w", e.Argv[0], err)
		}
		attr.Files = append(attr.Files, fd)
	}
	if e.TTY != nil {
		attr.Sys.Setctty, attr.Sys.Ctty = true, 0
	}
	p.pid, p.ended, err = a.children.start(path, e.Argv, attr)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.Argv[0], err)
	}
	return p, nil
}

// lookPath finds a program as a process with this environment in this folder
// would.
func lookPath(name, dir string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join("/", dir, name)
		}
		return name, nil // exec tells what is wrong with it
	}
	search := os.Getenv("PATH")
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			search = v
		}
	}
	denied := error(exec.ErrNotFound)
	for _, folder := range filepath.SplitList(search) {
		path := filepath.Join(folder, name)
		err := executable(path)
		if err == nil {
			return path, nil
		}
		if errors.Is(err, fs.ErrPermission) {
			denied = err
		}
	}
	return "", denied
}

func executable(path string) error {
	fi, err := os.Stat(path)
	switch {
	case err != nil:
		return errors.Unwrap(err)
	case fi.IsDir() || fi.Mode()&0o111 == 0:
		return fs.ErrPermission
	}
	return nil
}

// notStarted is a shell's exit code for a command that could not be started.
func notStarted(err error) int {
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return exitNotFound
	}
	return exitNotExecutable
}

// open makes what connects a command with us; the caller closes the command's
// ends.
func (p *process) open(tty *wire.Size) (theirs []*os.File, err error) {
	if tty != nil {
		near, far, err := openTerminal(*tty)
		p.stdin, p.stdout = near, near
		return []*os.File{far, far, far}, err
	}
	pipe := func(near **os.File, input bool) {
		var fds [2]int
		if err == nil {
			err = unix.Pipe2(fds[:], unix.O_CLOEXEC)
		}
		if err != nil {
			return
		}
		ours, other := fds[0], fds[1]
		if input {
			ours, other = other, ours
		}
		theirs = append(theirs, os.NewFile(uintptr(other), "pipe"))
		err = unix.SetNonblock(ours, true) // so that os waits for it by epoll
		*near = os.NewFile(uintptr(ours), "pipe")
	}
	pipe(&p.stdin, true)
	pipe(&p.stdout, false)
	pipe(&p.stderr, false)
	return theirs, err
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

func (p *process) close() { closeAll([]*os.File{p.stdin, p.stdout, p.stderr}) }

// attend passes on input and output until the command has ended and all that it
// wrote is sent. Others may still hold its output; nobody waits for these.
func (p *process) attend(s *wire.Stream) wire.Result {
	go p.takeInput(s)
	var outputs sync.WaitGroup
	outputs.Go(func() { p.sendOutput(s, wire.Stdout, p.stdout) })
	if p.stderr != nil {
		outputs.Go(func() { p.sendOutput(s, wire.Stderr, p.stderr) })
	}
	status := <-p.ended
	close(p.done)
	// Wakes the readers, who then take what is there and nothing more.
	p.stdout.SetReadDeadline(time.Unix(1, 0))
	if p.stderr != nil {
		p.stderr.SetReadDeadline(time.Unix(1, 0))
	}
	outputs.Wait()
	if status.Signaled() {
		return wire.Result{Signal: int(status.Signal())}
	}
	return wire.Result{Code: status.ExitStatus()}
}

// takeInput writes the host's input to the command. What it no longer reads is
// dropped.
func (p *process) takeInput(s *wire.Stream) {
	defer powerOffOnPanic()
	in := s.Reader(wire.Stdin)
	defer in.Close()
	_, err := io.Copy(p.stdin, in)
	switch {
	case p.stderr != nil:
		p.stdin.Close()
	case err == nil:
		// A terminal has no end; the end of input is a key.
		p.stdin.Write([]byte{4})
	}
}

// lastWords is how long after its outputs a command's end may be told.
const lastWords = 10 * time.Millisecond

// sendOutput sends what a file has, until its end or, when the command has
// ended, until it has no more. The end is told by itself only where the command
// goes on: else the result that follows says it.
func (p *process) sendOutput(s *wire.Stream, channel byte, f *os.File) {
	defer powerOffOnPanic()
	out := s.Writer(channel)
	_, err := io.Copy(out, onlyReader{f})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		_, err = io.Copy(out, available{f})
	}
	if err != nil {
		f.Close() // nobody reads it, and the command is told so
	}
	select {
	case <-p.done:
	case <-time.After(lastWords):
		out.Close()
	}
}

// onlyReader keeps io.Copy from asking the file itself to copy.
type onlyReader struct{ io.Reader }

// available reads what a pipe or terminal holds, and never waits.
type available struct{ f *os.File }

func (a available) Read(b []byte) (n int, err error) {
	conn, err := a.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	controlErr := conn.Control(func(fd uintptr) {
		for {
			if n, err = unix.Read(int(fd), b); err != unix.EINTR {
				return
			}
		}
	})
	switch {
	case controlErr != nil:
		return 0, controlErr
	case err != nil || n == 0: // nothing there now, or nobody on the other side
		return 0, io.EOF
	}
	return n, nil
}

func (p *process) signal(number int) {
	if err := p.children.signal(p.pid, unix.Signal(number)); err != nil && !errors.Is(err, os.ErrProcessDone) {
		say("agent: send signal %d to process %d: %v", number, p.pid, err)
	}
}

// hangUp ends a command that nobody waits for any more as the loss of its
// terminal would, and by force if that does not do.
func (a *agent) hangUp(p *process) {
	p.signal(int(unix.SIGHUP))
	p.signal(int(unix.SIGCONT))
	select {
	case <-p.done:
	case <-time.After(hangUpGrace):
		p.signal(int(unix.SIGKILL))
	}
}
