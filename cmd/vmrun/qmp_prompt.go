package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/control"
)

// prompt is an interactive session with a VM's QEMU.
type prompt struct {
	machine vm.Machine
	schema  qmpSchema
	timeout time.Duration
	out     io.Writer
}

// qmpPrompt reads commands from the terminal, or from stdin, until its end.
func qmpPrompt(ctx context.Context, name string, timeout time.Duration) error {
	m, err := oneVM(ctx, name)
	if err != nil {
		return err
	}
	if err := living(m, "ask"); err != nil {
		return err
	}
	p := &prompt{machine: m, timeout: timeout, out: os.Stdout}
	if p.schema, err = loadSchema(ctx, m, timeout); err != nil {
		return fmt.Errorf("ask %s: %w", name, err)
	}
	if isTerminal(os.Stdin, os.Stdout) {
		return p.onTerminal(ctx)
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if err := p.run(ctx, lines.Text()); err != nil {
			return err
		}
	}
	return lines.Err()
}

// onTerminal edits lines, with a history, and shows events between them. The
// terminal is restored whatever ends this process.
func (p *prompt) onTerminal(ctx context.Context) error {
	signals, stop := listen()
	defer stop()
	executable, err := os.Executable()
	if err != nil {
		return err
	}
	t, err := openTerminal(os.Stdin, os.Stdout, executable)
	if err != nil {
		return err
	}
	defer t.Close()
	editor := term.NewTerminal(struct {
		io.Reader
		io.Writer
	}{rawKeys{os.Stdin}, os.Stdout}, p.machine.Name+"> ")
	p.out = editor
	p.fit(editor)
	editor.AutoCompleteCallback = p.completer(editor)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	gone, ended, listening := make(chan error, 1), make(chan error, 1), make(chan struct{})
	go func() { gone <- p.showEvents(ctx, editor, func() { close(listening) }) }()
	go func() {
		select {
		case <-listening:
			ended <- p.edit(ctx, editor)
		case <-ctx.Done():
		}
	}()
	select {
	case err := <-ended:
		return err
	case err := <-gone:
		if err == nil {
			fmt.Fprintf(editor, "%s has ended\n", p.machine.Name)
		}
		return err
	case s := <-signals:
		signal := s.(unix.Signal)
		return exitError{exitSignal + int(signal), signalError{signal}}
	}
}

// rawKeys reads a raw terminal. That has an end only when it is gone, where the
// editor would take that for ctrl-D.
type rawKeys struct{ terminal io.Reader }

func (k rawKeys) Read(p []byte) (int, error) {
	n, err := k.terminal.Read(p)
	if err != nil {
		err = exitError{exitSignal + int(unix.SIGHUP), signalError{unix.SIGHUP}}
	}
	return n, err
}

// fit tells the editor how wide the terminal is.
func (p *prompt) fit(editor *term.Terminal) {
	if w, h, err := term.GetSize(int(os.Stdout.Fd())); err == nil && w > 0 {
		editor.SetSize(w, h)
	}
}

// edit reads and runs lines until ctrl-D.
func (p *prompt) edit(ctx context.Context, editor *term.Terminal) error {
	for {
		line, err := editor.ReadLine()
		p.fit(editor)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && !errors.Is(err, term.ErrPasteIndicator):
			return err
		}
		if err := p.run(ctx, line); err != nil {
			return err
		}
	}
}

// run runs one line. What QEMU refuses does not end the prompt; the VM's end
// does.
func (p *prompt) run(ctx context.Context, line string) error {
	fields := splitLine(line)
	if len(fields) == 0 {
		return nil
	}
	if fields[0] == "help" {
		_, err := fmt.Fprintln(p.out, strings.Join(p.schema.commands(), "\n"))
		return err
	}
	args, err := qmpArguments(fields[1:])
	var reply json.RawMessage
	if err == nil {
		reply, err = control.QMP(ctx, p.machine, fields[0], args, p.timeout)
	}
	if err != nil {
		fmt.Fprintln(p.out, err)
		return nil
	}
	return printReply(p.out, reply)
}

// splitLine splits a line into a command and its arguments: one object, or words.
func splitLine(line string) []string {
	command, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	switch rest = strings.TrimSpace(rest); {
	case command == "":
		return nil
	case strings.HasPrefix(rest, "{"):
		return []string{command, rest}
	}
	return append([]string{command}, strings.Fields(rest)...)
}

func (p *prompt) showEvents(ctx context.Context, editor *term.Terminal, ready func()) error {
	return control.Listen(ctx, p.machine, ready, func(e control.Event) error {
		_, err := fmt.Fprintf(editor, "%s %s %s\n", e.Time.Local().Format(time.TimeOnly), e.Event, e.Data)
		return err
	})
}

// completer completes at a tab what is certain, and shows what there is where it
// is not.
func (p *prompt) completer(editor *term.Terminal) func(string, int, rune) (string, int, bool) {
	return func(line string, pos int, key rune) (string, int, bool) {
		if key != '\t' {
			return "", 0, false
		}
		start, candidates := p.schema.complete(line[:pos])
		prefix := commonPrefix(candidates)
		switch {
		case len(candidates) == 0:
			return line, pos, true
		case len(candidates) == 1 && !strings.HasSuffix(prefix, "=") && !strings.HasSuffix(prefix, "."):
			prefix += " "
		case len(candidates) > 1 && prefix == line[start:pos]:
			go fmt.Fprintln(editor, strings.Join(candidates, "  ")) // the editor holds its lock meanwhile
		}
		return line[:start] + prefix + line[pos:], start + len(prefix), true
	}
}
