package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
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
func runCommand(config Config, c *children, power <-chan struct{}) int {
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
	ended, err := startCommand(c, argv)
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
	return exitCode(<-ended)
}

// startCommand starts argv in a session of its own, with the console as its
// controlling terminal.
func startCommand(c *children, argv []string) (ended <-chan unix.WaitStatus, err error) {
	path, err := exec.LookPath(argv[0])
	if e, ok := errors.AsType[*exec.Error](err); ok {
		err = e.Err
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", argv[0], err)
	}
	console, err := openConsole()
	if err != nil {
		return nil, fmt.Errorf("%s: open console: %w", argv[0], err)
	}
	defer console.Close()
	fd := console.Fd()
	_, ended, err = c.start(path, argv, &syscall.ProcAttr{
		Dir:   "/",
		Env:   os.Environ(),
		Files: []uintptr{fd, fd, fd},
		Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0},
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", argv[0], err)
	}
	return ended, nil
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

// serialConsole is the path of the terminal behind the serial port, at whose other
// end the host is; "": the kernel has none for its console.
func serialConsole() string {
	active, err := os.ReadFile("/sys/class/tty/console/active")
	if err != nil {
		return ""
	}
	for _, name := range slices.Backward(strings.Fields(string(active))) {
		if strings.HasPrefix(name, "ttyS") {
			return "/dev/" + name
		}
	}
	return ""
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
