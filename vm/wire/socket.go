package wire

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

const network = "unixpacket"

// Listen binds a control socket in a folder, as ListenStream does. Whoever connects
// before Serve waits.
func Listen(dir, name string) (*net.UnixListener, error) { return listen(network, dir, name) }

// ListenStream binds a socket for streams of bytes in a folder, in the place of one
// that was left. Only the folder's owner can reach it. It gets its mode last, when
// it listens already. The caller closes it, which leaves the file.
func ListenStream(dir, name string) (*net.UnixListener, error) { return listen("unix", dir, name) }

func listen(network, dir, name string) (*net.UnixListener, error) {
	if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove stale socket: %w", err)
	}
	var l *net.UnixListener
	err := inFolder(dir, name, func(path string) (err error) {
		if l, err = net.ListenUnix(network, &net.UnixAddr{Net: network, Name: path}); err != nil {
			return err
		}
		l.SetUnlinkOnClose(false)
		return os.Chmod(path, 0o600) // Serve asks as well who calls
	})
	if err != nil {
		if l != nil {
			err = errors.Join(err, l.Close())
		}
		return nil, fmt.Errorf("listen on %s: %w", name, err)
	}
	return l, nil
}

// Dial connects with the control socket in a folder. NobodyListens tells
// whether its error means that there is no server.
func Dial(ctx context.Context, dir, name string) (*net.UnixConn, error) {
	return dial(ctx, network, dir, name)
}

// DialStream connects with a socket of ListenStream's.
func DialStream(ctx context.Context, dir, name string) (*net.UnixConn, error) {
	return dial(ctx, "unix", dir, name)
}

func dial(ctx context.Context, network, dir, name string) (conn *net.UnixConn, err error) {
	err = inFolder(dir, name, func(path string) error {
		var d net.Dialer
		c, err := d.DialContext(ctx, network, path)
		if err == nil {
			conn = c.(*net.UnixConn)
		}
		return err
	})
	return conn, err
}

// NobodyListens tells whether an error of Dial says that there is no server.
func NobodyListens(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT)
}

// inFolder calls f with a short path to a name in dir: a socket's path has room
// for 107 bytes (unix(7)), and runtime folders may be deep.
func inFolder(dir, name string, f func(path string) error) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return f(filepath.Join("/proc/self/fd", strconv.Itoa(int(d.Fd())), name))
}

// peerUID is who is at the other end of a connection.
func peerUID(conn *net.UnixConn) (uint32, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, credErr
	}
	return cred.Uid, nil
}
