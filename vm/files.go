package vm

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/vm/qemu"
)

// firstInherited is the number of the first descriptor after the standard ones.
const firstInherited = 3

// inheritance is what QEMU inherits, in the order of the descriptors. It owns
// none of the files.
type inheritance struct {
	names []string
	files []*os.File
}

func (in *inheritance) add(name string, f *os.File) {
	in.names = append(in.names, name)
	in.files = append(in.files, f)
}

// fd is the number that a file has in QEMU.
func (in *inheritance) fd(name string) qemu.FD {
	i := slices.Index(in.names, name)
	if i < 0 {
		panic("no inherited file " + name)
	}
	return qemu.FD(strconv.Itoa(firstInherited + i))
}

// path is the name by which QEMU opens a file that it inherits.
func (in *inheritance) path(name string) string { return "/dev/fd/" + string(in.fd(name)) }

// closeOnExec keeps from QEMU what this process was itself started with: files
// that its parent left open.
func closeOnExec() error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("list open files: %w", err)
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd >= firstInherited {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// socketpair is a connection with an end for QEMU. The caller closes both.
func socketpair(name string) (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	near, theirs := os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name)
	defer near.Close()
	conn, err := net.FileConn(near)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("make socket pair: %w", err), theirs.Close())
	}
	return conn.(*net.UnixConn), theirs, nil
}

// inMemory copies a file to one without a name: QEMU's user may open that one,
// whoever may open the other. The caller closes it.
func inMemory(path string) (_ *os.File, err error) {
	src, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	fd, err := unix.MemfdCreate(path[max(0, len(path)-200):], unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("copy %s to memory: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	_, err = io.Copy(f, src)
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("copy %s to memory: %w", path, err), f.Close())
	}
	return f, nil
}
