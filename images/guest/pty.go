package guest

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/images/guest/wire"
)

// openTerminal makes a pseudo-terminal; pty(7). The far end is for a command.
// The caller closes both.
func openTerminal(size wire.Size) (near, far *os.File, err error) {
	// Blocking mode would keep readers from being woken.
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open terminal: %w", err)
	}
	near = os.NewFile(uintptr(fd), "/dev/ptmx")
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = setSize(fd, size)
	}
	if err == nil {
		far, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("open terminal: %w", err), near.Close())
	}
	return near, far, nil
}

func setSize(fd int, size wire.Size) error {
	return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
}

// resizeConsole tells the console's terminal, and by a signal whoever has it,
// another size. QEMU can't: it has no way to tell its consoles a size, and a
// serial port none to carry it.
func resizeConsole(path string, size wire.Size) error {
	if path == "" {
		return errors.New("resize console: the guest has none on a serial port")
	}
	// A serial port that waits for a carrier would keep us from opening it.
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("resize console: open %s: %w", path, err)
	}
	defer unix.Close(fd)
	if err := setSize(fd, size); err != nil {
		return fmt.Errorf("resize console: %w", err)
	}
	return nil
}

// resize tells the terminal, and by a signal the command, of another size.
func (p *process) resize(size wire.Size) {
	conn, err := p.stdout.SyscallConn()
	if err != nil {
		return
	}
	err = conn.Control(func(fd uintptr) { err = setSize(int(fd), size) })
	if err != nil {
		say("agent: resize terminal: %v", err)
	}
}
