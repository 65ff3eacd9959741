package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/vmrun/vmrun/vm/agent"
)

const (
	typeAhead     = 256 // reads from the keyboard that wait for the guest
	drainPatience = 5 * time.Second
)

// guestConsole is the console of a VM: of this process's, or of another's.
type guestConsole interface {
	io.ReadWriteCloser
	Resize(agent.Size)
}

// screen connects the guest's console with stdin and stdout until it is closed.
type screen struct {
	console  guestConsole
	terminal *terminal // nil: not on one
	stderr   *lineWriter
	actions  chan action
	typed    chan []byte   // on its way to the guest
	shown    chan struct{} // closed when all output is written, or can't be
	err      error         // why it can't be; after shown
	cancel   context.CancelFunc
}

// openScreen takes the terminal where there is one, and starts to copy. The
// meaning is what the escape and a dot do.
func (r *runner) openScreen(console guestConsole, meaning string) (*screen, error) {
	ctx, cancel := context.WithCancel(context.Background())
	s := &screen{console: console, stderr: r.stderr, cancel: cancel,
		actions: make(chan action), typed: make(chan []byte, typeAhead), shown: make(chan struct{})}
	switch {
	case isTerminal(os.Stdin, os.Stdout):
		if err := s.takeTerminal(ctx, r, meaning); err != nil {
			cancel()
			console.Close()
			return nil, err
		}
		go s.readKeys(ctx, os.Stdin, &escapeParser{key: r.escape})
		go s.sendKeys(ctx)
		go s.sendSize(ctx)
	case !term.IsTerminal(int(os.Stdin.Fd())):
		// The end of the input is not the end of the VM.
		go io.Copy(console, os.Stdin)
	}
	go func() {
		defer close(s.shown)
		_, s.err = io.Copy(os.Stdout, console) // whoever closed stdout doesn't want the rest
	}()
	return s, nil
}

func (s *screen) takeTerminal(ctx context.Context, r *runner, meaning string) error {
	executable, err := os.Executable()
	if err != nil {
		return err
	}
	if r.escape != 0 {
		name := escapeName(r.escape)
		r.log.Info("the console follows; " + name + " . " + meaning + ", " + name + " ? lists the keys")
	}
	if s.terminal, err = openTerminal(os.Stdin, os.Stdout, executable); err != nil {
		return err
	}
	if term.IsTerminal(int(os.Stderr.Fd())) {
		s.stderr.terminal.Store(s.terminal)
	}
	s.terminal.suspendable(ctx)
	return nil
}

// readKeys sorts what is typed into what the guest gets and what the watch is
// asked for. It never waits for the guest: the escape works when all else hangs.
func (s *screen) readKeys(ctx context.Context, keys io.Reader, p *escapeParser) {
	buf := make([]byte, 256)
	for {
		n, err := keys.Read(buf)
		if err != nil {
			return // the terminal is gone; SIGHUP says so as well
		}
		var send []byte
		for _, b := range buf[:n] {
			typed, act := p.next(b)
			send = append(send, typed...)
			if act == actNone {
				continue
			}
			select {
			case s.actions <- act:
			case <-ctx.Done():
				return
			}
		}
		select {
		case s.typed <- send:
		default: // lost, as on a serial line
		}
	}
}

func (s *screen) sendKeys(ctx context.Context) {
	for {
		select {
		case keys := <-s.typed:
			if _, err := s.console.Write(keys); err != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// sendSize tells the guest the terminal's size, and each other one that it gets, also
// while this process is stopped. One that it has already is not told again: another
// terminal may have been resized since.
func (s *screen) sendSize(ctx context.Context) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH, unix.SIGCONT)
	defer signal.Stop(changed)
	var told agent.Size
	for {
		size, err := terminalSize(os.Stdout)
		if err == nil && size.Rows > 0 && size.Cols > 0 && *size != told { // else it knows none
			told = *size
			s.console.Resize(told)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// drain waits until all that the guest wrote is out, or a signal comes because
// nobody reads it. After --timeout it is lost to whoever doesn't take it soon;
// the log has it.
func (s *screen) drain(ctx context.Context, signals <-chan os.Signal) {
	select {
	case <-s.shown:
		return
	case <-signals:
		return
	case <-ctx.Done():
	}
	select {
	case <-s.shown:
	case <-signals:
	case <-time.After(drainPatience):
	}
}

// Close ends the copying and gives the terminal back.
func (s *screen) Close() error {
	s.cancel()
	s.console.Close()
	if s.terminal == nil {
		return nil
	}
	s.stderr.terminal.Store(nil)
	return s.terminal.Close()
}
