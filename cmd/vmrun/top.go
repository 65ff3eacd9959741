package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/gdamore/tcell/v2"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// top shows a table of VMs until it is told to end.
type top struct {
	table    topTable
	screen   topScreen
	interval time.Duration
	sample   func(context.Context) ([]topSample, error)
	console  func(name string) error // has the terminal while it runs
}

// topEvent is what a key asks for.
type topEvent int

const (
	topNothing topEvent = iota
	topQuit
	topConsole
)

// run draws after every interval and every key.
func (t *top) run(ctx context.Context) error {
	events, quit := make(chan tcell.Event), make(chan struct{})
	defer close(quit)
	go t.screen.screen.ChannelEvents(events, quit)
	tick := time.NewTicker(t.interval)
	defer tick.Stop()
	trouble := t.refresh(ctx)
	for {
		t.screen.draw(&t.table, trouble)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			trouble = t.refresh(ctx)
		case e, ok := <-events:
			if !ok {
				return fmt.Errorf("the terminal is gone")
			}
			switch t.handle(e) {
			case topQuit:
				return nil
			case topConsole:
				trouble = t.openConsole()
			}
		}
	}
}

// refresh takes new samples; what hinders is told on the screen, not the end.
func (t *top) refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, max(t.interval, time.Second))
	defer cancel()
	samples, err := t.sample(ctx)
	t.table.update(samples, time.Now())
	return err
}

// openConsole lends the terminal to the selected VM's console.
func (t *top) openConsole() error {
	i := t.table.cursor()
	if i < 0 {
		return nil
	}
	if err := t.screen.screen.Suspend(); err != nil {
		return err
	}
	err := t.console(t.table.rows[i].Name)
	if resumed := t.screen.screen.Resume(); resumed != nil {
		return resumed
	}
	t.screen.screen.Sync()
	return err
}

func (t *top) handle(e tcell.Event) topEvent {
	switch e := e.(type) {
	case *tcell.EventResize:
		t.screen.screen.Sync()
	case *tcell.EventKey:
		return t.key(e)
	}
	return topNothing
}

// topSorts are the keys of columns.
var topSorts = map[rune]topColumn{'n': byName, 'c': byCPU, 'm': byMemory, 'd': byDisk, 't': byNetwork}

func (t *top) key(e *tcell.EventKey) topEvent {
	switch e.Key() {
	case tcell.KeyCtrlC, tcell.KeyEscape:
		return topQuit
	case tcell.KeyEnter:
		return topConsole
	case tcell.KeyUp:
		t.table.move(-1)
	case tcell.KeyDown:
		t.table.move(1)
	case tcell.KeyRune:
		return t.typed(e.Rune())
	}
	return topNothing
}

func (t *top) typed(r rune) topEvent {
	if column, ok := topSorts[r]; ok {
		t.table.sortBy(column)
		return topNothing
	}
	switch r {
	case 'q':
		return topQuit
	case 'k':
		t.table.move(-1)
	case 'j':
		t.table.move(1)
	}
	return topNothing
}

const topLong = `Show a live table of the VMs that run: CPU, memory, and what goes through disks and
network cards, as the guest sees it.

Keys: q ends; the arrows, j and k select; enter opens the console of the selected VM
(its escape and then . come back); n, c, m, d and t sort by name, CPU, memory, disk
and network, and the same key again turns the order round.`

func newTopCommand() *cobra.Command {
	var interval time.Duration
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show a live table of the VMs that run",
		Long:  topLong,
		Args:  usageArgs(noArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case interval < 100*time.Millisecond:
				return usageError{cmd.CommandPath(), fmt.Errorf("--interval %v: want at least 100ms", interval)}
			case !isTerminal(os.Stdin, os.Stdout):
				return usageError{cmd.CommandPath(), errors.New("it needs a terminal; vmrun ps --json is for programs")}
			}
			return runTop(cmd.Context(), interval)
		},
	}
	cmd.Flags().DurationVarP(&interval, "interval", "d", 2*time.Second, "between two looks at the VMs")
	return cmd
}

func runTop(ctx context.Context, interval time.Duration) error {
	host, err := locateHost()
	if err != nil {
		return err
	}
	screen, err := tcell.NewScreen()
	if err == nil {
		err = screen.Init()
	}
	if err != nil {
		return fmt.Errorf("open the terminal: %w", err)
	}
	defer screen.Fini()
	signals, stop := listen()
	defer stop()
	err, signal, _ := untilSignal(ctx, signals, func(ctx context.Context) error {
		t := &top{screen: topScreen{screen: screen, color: styleOf(ctx).color}, interval: interval,
			sample:  func(ctx context.Context) ([]topSample, error) { return sampleVMs(ctx, host) },
			console: func(name string) error { return runConsole(ctx, host.Executable, name) },
		}
		return t.run(ctx)
	})
	if signal != 0 {
		return exitError{exitSignal + int(signal), signalError{signal}}
	}
	return err
}

// runConsole is the command console, as a process of its own: its reading of the
// keyboard ends with it.
func runConsole(ctx context.Context, executable, name string) error {
	cmd := exec.CommandContext(ctx, executable, "console", name)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) } // it has the terminal to give back
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("console %s: %w", name, err)
	}
	return nil
}
