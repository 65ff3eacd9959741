package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// resetModes undoes what a guest may have done to the terminal's display: the
// alternate screen, mouse reports, bracketed paste, application keys, another
// character set, a scroll region, a hidden cursor, no wrapping, colours. 1047
// and not 1049, which would move the cursor though it was never saved.
const resetModes = "\x1b[?1047l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[?1l\x1b>" +
	"\x0f\x1b(B\x1b7\x1b[r\x1b8\x1b[?25h\x1b[?7h\x1b[0m"

// terminal is the user's terminal while the guest has it. It may be used by
// several goroutines.
type terminal struct {
	in, out *os.File
	saved   *unix.Termios // as the user had it
	guard   *guard

	mu     sync.Mutex
	raw    bool
	closed bool // nobody makes it raw again
}

// isTerminal reports whether the guest can have in and out as its terminal.
func isTerminal(in, out *os.File) bool {
	return term.IsTerminal(int(in.Fd())) && term.IsTerminal(int(out.Fd()))
}

// openTerminal puts the terminal into raw mode, so that the guest gets every
// key. The guard, a process of executable, restores it if this process dies
// before Close does.
func openTerminal(in, out *os.File, executable string) (*terminal, error) {
	saved, err := unix.IoctlGetTermios(int(in.Fd()), unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("read terminal settings: %w", err)
	}
	g, err := startGuard(in, out, executable, saved)
	if err != nil {
		return nil, err
	}
	t := &terminal{in: in, out: out, saved: saved, guard: g}
	if err := t.makeRaw(); err != nil {
		g.Close()
		return nil, err
	}
	return t, nil
}

func (t *terminal) makeRaw() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	if _, err := term.MakeRaw(int(t.in.Fd())); err != nil {
		return fmt.Errorf("set terminal to raw mode: %w", err)
	}
	t.raw = true
	return nil
}

// restore gives the terminal back as it was, until makeRaw takes it again.
func (t *terminal) restore() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.restoreLocked()
}

func (t *terminal) restoreLocked() error {
	if !t.raw {
		return nil
	}
	t.raw = false
	return restoreTerminal(t.in, t.out, t.saved)
}

// Close restores the terminal for good. A second call does nothing.
func (t *terminal) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	err := t.restoreLocked()
	t.guard.Close()
	return err
}

// lineWriter writes messages, with line ends that a raw terminal shows as such.
type lineWriter struct {
	w        io.Writer
	terminal atomic.Pointer[terminal] // that w is; nil: w is none, or nobody took it

	mu    sync.Mutex
	shown string // line of status that is there now; "": none
}

const clearLine = "\r\x1b[K" // ECMA-48, EL

// status shows a line on a terminal, in place of the one before; "" takes it
// away. What is written meanwhile goes above it.
func (l *lineWriter) status(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if line != "" || l.shown != "" {
		io.WriteString(l.w, clearLine+line)
	}
	l.shown = line
}

// Write adds a carriage return to each line while the terminal is raw.
func (l *lineWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shown != "" {
		io.WriteString(l.w, clearLine)
		defer func() { io.WriteString(l.w, l.shown) }()
	}
	t := l.terminal.Load()
	if t == nil {
		return l.w.Write(p)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.raw {
		return l.w.Write(p)
	}
	if _, err := l.w.Write(bytes.ReplaceAll(p, []byte("\n"), []byte("\r\n"))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// restoreTerminal sets the settings, then resets the display.
func restoreTerminal(in, out *os.File, saved *unix.Termios) error {
	if err := unix.IoctlSetTermios(int(in.Fd()), unix.TCSETS, saved); err != nil {
		return fmt.Errorf("restore terminal settings: %w", err)
	}
	if _, err := io.WriteString(out, resetModes); err != nil {
		return fmt.Errorf("reset terminal: %w", err)
	}
	return nil
}
