package dhcp

import (
	"log/slog"
	"time"
)

// quietTime is how long one kind of complaint is kept to itself after it was
// logged: what a guest can provoke must not fill the host's disk.
const quietTime = time.Minute

// quiet logs each message at most once per quietTime, and then how many it kept
// back. It must not be shared between goroutines.
type quiet struct {
	log  *slog.Logger
	now  func() time.Time
	said map[string]said
}

type said struct {
	at   time.Time
	kept int
}

func newQuiet(log *slog.Logger, now func() time.Time) quiet {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return quiet{log: log, now: now, said: make(map[string]said)}
}

// warn takes a constant message; whatever varies goes into args.
func (q quiet) warn(msg string, args ...any) {
	last, now := q.said[msg], q.now()
	if !last.at.IsZero() && now.Sub(last.at) < quietTime {
		last.kept++
		q.said[msg] = last
		return
	}
	if last.kept > 0 {
		args = append(args, "more", last.kept)
	}
	q.said[msg] = said{at: now}
	q.log.Warn(msg, args...)
}
