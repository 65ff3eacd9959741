package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Exit codes of commands that could not be run, as shells have them.
const (
	exitNotExecutable = 126
	exitNotFound      = 127
	exitSignal        = 128 // plus the signal
)

// stopGrace is how long processes have to end once the power button is pressed.
const stopGrace = 5 * time.Second

// runCommand runs the command, or the shell, until it ends, at the latest some
// time after power is closed. It returns its exit code.
func runCommand(config Config, power <-chan struct{}) int {
	argv, gentle := config.Command, []unix.Signal{unix.SIGTERM, unix.SIGCONT}
	if len(argv) == 0 {
		if config.Shell == "" {
			say("no command and no shell: waiting for the power button")
			<-power
			return 0
		}
		// An interactive shell ignores SIGTERM.
		argv, gentle = []string{config.Shell}, append(gentle, unix.SIGHUP)
	}
	pid, err := startCommand(argv)
	if err != nil {
		say("run %v", err)
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
			return exitNotFound
		}
		return exitNotExecutable
	}
	go func() {
		defer powerOffOnPanic()
		<-power
		for _, s := range gentle {
			signalAll(s)
		}
		time.Sleep(stopGrace)
		signalAll(unix.SIGKILL)
	}()
	return reap(pid)
}

// startCommand starts argv in a session of its own, with the console as its
// controlling terminal. It does not use os/exec to wait: process 1 reaps all
// children, and would take the command's status from under it.
func startCommand(argv []string) (pid int, err error) {
	path, err := exec.LookPath(argv[0])
	if e, ok := errors.AsType[*exec.Error](err); ok {
		err = e.Err
	}
	if err != nil {
		return 0, fmt.Errorf("%s: %w", argv[0], err)
	}
	console, err := openConsole()
	if err != nil {
		return 0, fmt.Errorf("%s: open console: %w", argv[0], err)
	}
	defer console.Close()
	fd := console.Fd()
	pid, err = syscall.ForkExec(path, argv, &syscall.ProcAttr{
		Dir:   "/",
		Env:   os.Environ(),
		Files: []uintptr{fd, fd, fd},
		Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0},
	})
	if err != nil {
		return 0, fmt.Errorf("%s: %w", argv[0], err)
	}
	return pid, nil
}

// openConsole opens the terminal behind /dev/console, which itself can't be a
// controlling terminal.
func openConsole() (*os.File, error) {
	active, err := os.ReadFile("/sys/class/tty/console/active")
	if err == nil {
		// The last of the list is the one that /dev/console is.
		names := strings.Fields(string(active))
		if len(names) > 0 {
			return os.OpenFile("/dev/"+names[len(names)-1], os.O_RDWR|unix.O_NOCTTY, 0)
		}
	}
	return os.OpenFile("/dev/console", os.O_RDWR|unix.O_NOCTTY, 0)
}

// reap collects ended processes, orphans too, until pid is among them. It
// returns pid's exit code.
func reap(pid int) int {
	for {
		var status unix.WaitStatus
		ended, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			say("wait for process %d: %v", pid, err)
			return exitNotExecutable
		case ended == pid:
			return exitCode(status)
		}
	}
}

// exitCode is a process's exit code as a shell would have it.
func exitCode(status unix.WaitStatus) int {
	if status.Signaled() {
		return exitSignal + int(status.Signal())
	}
	return status.ExitStatus()
}

// signalAll sends s to all processes but this one.
func signalAll(s unix.Signal) {
	if err := unix.Kill(-1, s); err != nil && !errors.Is(err, unix.ESRCH) {
		say("send %v to all processes: %v", s, err)
	}
}
