package control

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/vmrun/vmrun/internal/fanout"
)

// drain are the names of what is queued.
func drain(l *fanout.Listener[Event]) []string {
	var names []string
	for {
		select {
		case e, more := <-l.Events():
			if !more {
				return append(names, "end")
			}
			names = append(names, e.Event+string(e.Data))
		default:
			return names
		}
	}
}

// A listener that does not keep up is told how many events it has missed.
func TestFeedSlowListener(t *testing.T) {
	f := NewFeed("web")
	slow := f.events.Listen()
	const told = 1000
	for i := range told {
		f.publish("qmp", fmt.Sprint("E", i), time.Now(), json.RawMessage(nil))
	}
	heard := drain(slow)
	f.publish("qmp", "LAST", time.Now(), json.RawMessage(nil))
	want := fmt.Sprintf("[MISSED{\"count\":%d} LAST]", told-len(heard))
	if got := fmt.Sprint(drain(slow)); got != want || len(heard) == 0 {
		t.Errorf("after %d events got %s, want %s", len(heard), got, want)
	}
}

// What is logged of networks are events; all else is only logged.
func TestFeedOfLog(t *testing.T) {
	f := NewFeed("web")
	l := f.events.Listen()
	var text strings.Builder
	log := slog.New(f.Handler(slog.NewTextHandler(&text, &slog.HandlerOptions{Level: slog.LevelInfo})))
	log.Info("no event")
	log.With("network", "lan").Warn("the keeper died")
	log.Debug("an address", "network", "lan", "ip", "10.70.0.9")
	log.WithGroup("g").Info("joined", "network", "lan")
	want := `[TROUBLE{"message":"the keeper died","network":"lan"} ADDRESS{"ip":"10.70.0.9","message":"an address","network":"lan"} NOTE{"message":"joined","network":"lan"}]`
	if got := fmt.Sprint(drain(l)); got != want {
		t.Errorf("got\n%s, want\n%s", got, want)
	}
	if got := text.String(); strings.Count(got, "\n") != 3 || strings.Contains(got, "an address") {
		t.Errorf("the log is\n%s", got)
	}
	slog.New(f.Handler(slog.NewTextHandler(io.Discard, nil))).Error("nothing of a network")
	if got := drain(l); len(got) > 0 {
		t.Errorf("got %v", got)
	}
}
