package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// guardName is the hidden command of the guard.
const guardName = "terminal-guard"

// guard is a process that waits for the end of a pipe that only we hold, and
// then restores the terminal if nobody has done so: whatever ends us, SIGKILL
// and a panic in any goroutine included, the kernel closes the pipe.
type guard struct {
	cmd  *exec.Cmd
	pipe io.WriteCloser
}

// startGuard starts a guard of the terminal in and out, which has the settings
// saved.
func startGuard(in, out *os.File, executable string, saved *unix.Termios) (*guard, error) {
	cmd := &exec.Cmd{
		Path:       executable,
		Args:       []string{"vmrun", guardName},
		Stdout:     out,
		ExtraFiles: []*os.File{in},
		// What is sent to our process group is not meant for it.
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
	}
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start terminal guard: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start terminal guard: %w", err)
	}
	g := &guard{cmd, pipe}
	if err := binary.Write(pipe, binary.NativeEndian, saved); err != nil {
		g.Close()
		return nil, fmt.Errorf("tell terminal guard the settings: %w", err)
	}
	return g, nil
}

// Close ends the guard, which then finds the terminal restored.
func (g *guard) Close() {
	g.pipe.Close()
	g.cmd.Wait() // how it ended changes nothing here
}

func newGuardCommand() *cobra.Command {
	return &cobra.Command{
		Use:    guardName,
		Hidden: true,
		Args:   usageArgs(noArgs),
		RunE: func(*cobra.Command, []string) error {
			return guardTerminal(os.Stdin, os.NewFile(3, "terminal"), os.Stdout)
		},
	}
}

// guardTerminal is the guard: it reads the settings from pipe, waits for the
// pipe's end and restores the terminal if it is still raw.
func guardTerminal(pipe io.Reader, in, out *os.File) error {
	// From a process group in the background the kernel answers a change of
	// settings with SIGTTOU, unless that is ignored.
	signal.Ignore(syscall.SIGTTOU, syscall.SIGTTIN, syscall.SIGTSTP, syscall.SIGINT, syscall.SIGTERM)
	var saved unix.Termios
	if err := binary.Read(pipe, binary.NativeEndian, &saved); err != nil {
		return fmt.Errorf("read terminal settings: %w", err)
	}
	io.Copy(io.Discard, pipe)
	now, err := unix.IoctlGetTermios(int(in.Fd()), unix.TCGETS)
	if err != nil {
		return fmt.Errorf("read terminal settings: %w", err)
	}
	if !isRaw(now) {
		return nil // restored, or already the shell's
	}
	return restoreTerminal(in, out, &saved)
}

// isRaw tells our raw mode from that of a shell's line editor, which leaves the
// signal keys on.
func isRaw(t *unix.Termios) bool {
	return t.Lflag&(unix.ICANON|unix.ECHO|unix.ISIG) == 0
}
