package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
)

// newMessages is a logger for people: one line a record, without time and
// level, `vmrun: web: joined network lan`. With quiet it has only warnings.
func newMessages(w io.Writer, quiet bool) *slog.Logger {
	return slog.New(newHandler(w, quiet, style{}))
}

func newHandler(w io.Writer, quiet bool, s style) *messages {
	least := slog.LevelInfo
	if quiet {
		least = slog.LevelWarn
	}
	return &messages{w: w, mu: new(sync.Mutex), least: least, style: s}
}

// messages is a slog.Handler.
type messages struct {
	w      io.Writer
	mu     *sync.Mutex // of all handlers of one logger
	least  slog.Level
	style  style
	attrs  string
	groups string
}

// Enabled implements slog.Handler.
func (m *messages) Enabled(_ context.Context, level slog.Level) bool { return level >= m.least }

// Handle implements slog.Handler.
func (m *messages) Handle(_ context.Context, r slog.Record) error {
	var line strings.Builder
	line.WriteString("vmrun: ")
	if r.Level >= slog.LevelWarn {
		line.WriteString(m.style.paint(yellow, "warning:") + " ")
	}
	line.WriteString(r.Message + m.attrs)
	r.Attrs(func(a slog.Attr) bool {
		line.WriteString(m.text(a))
		return true
	})
	line.WriteByte('\n')
	m.mu.Lock()
	defer m.mu.Unlock()
	_, err := io.WriteString(m.w, line.String())
	return err
}

// WithAttrs implements slog.Handler.
func (m *messages) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := *m
	for _, a := range attrs {
		with.attrs += m.text(a)
	}
	return &with
}

// WithGroup implements slog.Handler.
func (m *messages) WithGroup(name string) slog.Handler {
	with := *m
	if name != "" {
		with.groups += name + "."
	}
	return &with
}

func (m *messages) text(a slog.Attr) string {
	value := a.Value.Resolve().String()
	if strings.ContainsAny(value, " \"\n") {
		value = fmt.Sprintf("%q", value)
	}
	return " " + m.groups + a.Key + "=" + value
}
