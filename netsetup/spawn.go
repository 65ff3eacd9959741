package netsetup

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// spawnTimeout bounds the wait for another member that is starting a keeper,
// which takes milliseconds.
const spawnTimeout = 30 * time.Second

// connect reaches the network's keeper, starting one if there is none. Under
// the spawn lock the listening socket is bound before the keeper runs, so that
// whoever comes later waits in its backlog: nobody polls, and there is one
// keeper however many members start at once.
func connect(ctx context.Context, h Host, dir string) (*net.UnixConn, error) {
	if conn, err := dialKeeper(dir); !nobodyListens(err) {
		return conn, err
	}
	lock, err := lockWithin(ctx, filepath.Join(dir, "spawn.lock"), spawnTimeout)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if conn, err := dialKeeper(dir); !nobodyListens(err) {
		return conn, err
	}
	if err := clearElsewhere(ctx, h, dir); err != nil {
		return nil, err
	}
	listener, err := listenKeeper(dir, savedGroup(dir))
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	// The connection waits for the keeper: should we die, it learns so at once.
	conn, err := dialKeeper(dir)
	if err != nil {
		return nil, err
	}
	if err := startKeeper(h, dir, listener); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// nobodyListens tells the errors that a socket without keeper gives from those
// that say nothing about it.
func nobodyListens(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT)
}

// startKeeper runs the keeper in a session of its own, with nothing inherited
// but the socket: it must outlive the member that happened to come first.
func startKeeper(h Host, dir string, listener *os.File) error {
	log, err := openLog(filepath.Join(dir, "keeper.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	if err := closeOnExec(); err != nil {
		return fmt.Errorf("start keeper: %w", err)
	}
	argv := keeperCommand(h, dir, scopeRunner())
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = "/"
	cmd.Env = append([]string{keeperPath}, faultEnvironment()...)
	cmd.Stderr = log
	cmd.ExtraFiles = []*os.File{listener}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := startRestricted(cmd); err != nil {
		return fmt.Errorf("start keeper: %w", err)
	}
	go cmd.Wait() // no zombie while this process lives; the result is in the log
	return nil
}

// keeperPath is a keeper's environment.
const keeperPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// maxLog is from when on a keeper's log is begun anew, in bytes: /run is memory.
const maxLog = 1 << 20

func openLog(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open keeper log: %w", err)
	}
	if fi, err := f.Stat(); err == nil && fi.Size() > maxLog {
		err = f.Truncate(0)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open keeper log: %w", err), f.Close())
		}
	}
	return f, nil
}

// scopeRunner is the program that gives a command a scope of systemd's; "" where
// systemd does not run.
func scopeRunner() string {
	if !exists("/run/systemd/system") { // as sd_booted(3)
		return ""
	}
	path, err := exec.LookPath("systemd-run")
	if err != nil {
		return ""
	}
	return path
}

// keeperCommand is the keeper's command line. Under systemd it gets a scope of
// its own: else the end of the CI job or session that started it would end the
// network of all others. systemd-run --scope becomes the command it is given
// and leaves inherited descriptors open (systemd-run.1).
func keeperCommand(h Host, dir, scopeRunner string) []string {
	network := filepath.Base(dir)
	return scoped(scopeRunner, "vmrun network "+network, daemonCommand(h, "keeper", "--network", network))
}

// daemonCommand is the command line of a process that does as its starter would:
// none of them inherits the environment.
func daemonCommand(h Host, name string, args ...string) []string {
	argv := append([]string{h.Executable, name, "--runtime", h.Runtime, "--state", h.State}, args...)
	if h.Firewall != "" {
		argv = append(argv, "--firewall", h.Firewall)
	}
	return argv
}

// scoped is a command line with what gives it a scope of its own.
func scoped(scopeRunner, description string, argv []string) []string {
	if scopeRunner == "" {
		return argv
	}
	return append([]string{scopeRunner, "--scope", "--quiet", "--collect", "--description=" + description, "--"}, argv...)
}

// inherited is the listening socket that startKeeper passed on.
func inherited() (*net.UnixListener, error) {
	f := os.NewFile(3, socketName)
	unix.CloseOnExec(3)
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("take over listening socket (only vmrun itself starts a keeper): %w", err)
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(errors.New("take over listening socket: it is no unix socket"), l.Close())
	}
	return u, nil
}
