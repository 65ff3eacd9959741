package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// style is how messages look, by the flags that every command has.
type style struct {
	json  bool // a line each, for programs
	color bool
}

// styleFlags are those flags.
type styleFlags struct {
	color  string // auto, always or never
	format string // text or json
}

func (f *styleFlags) add(cmd *cobra.Command) {
	p := cmd.PersistentFlags()
	p.StringVar(&f.color, "color", "auto", "colour messages: auto (on a terminal, unless NO_COLOR is set), always or never")
	p.StringVar(&f.format, "log-format", "text", "messages and errors as text, or as json, a line each")
}

// check finds what is wrong with the flags.
func (f *styleFlags) check() error {
	if want := []string{"auto", "always", "never"}; !slices.Contains(want, f.color) {
		return fmt.Errorf("--color %s: want auto, always or never", f.color)
	}
	if want := []string{"text", "json"}; !slices.Contains(want, f.format) {
		return fmt.Errorf("--log-format %s: want text or json", f.format)
	}
	return nil
}

// style is what the flags ask for on stderr. NO_COLOR is that of no-color.org:
// set to anything.
func (f *styleFlags) style(stderr *os.File, noColor string) style {
	s := style{json: f.format == "json"}
	switch f.color {
	case "always":
		s.color = !s.json
	case "auto":
		s.color = !s.json && noColor == "" && term.IsTerminal(int(stderr.Fd()))
	}
	return s
}

type styleKey struct{}

func withStyle(ctx context.Context, s style) context.Context {
	return context.WithValue(ctx, styleKey{}, s)
}

// styleOf is the style of the command that a context is of: plain where there is
// none.
func styleOf(ctx context.Context) style {
	s, _ := ctx.Value(styleKey{}).(style)
	return s
}

// Colours of words at the beginning of a message (ECMA-48, SGR).
const (
	red    = "31"
	yellow = "33"
	cyan   = "36"
)

func (s style) paint(color, text string) string {
	if !s.color {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

// messages is a logger for people, or for programs.
func (s style) messages(w io.Writer, quiet bool) *slog.Logger {
	if !s.json {
		return slog.New(newHandler(w, quiet, s))
	}
	least := slog.LevelInfo
	if quiet {
		least = slog.LevelWarn
	}
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: least}))
}
