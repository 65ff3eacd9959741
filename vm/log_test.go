package vm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// newLog is a log whose clock the test moves.
func newLog(t *testing.T) (*logFile, Machine, *time.Time, *syncBuffer) {
	t.Helper()
	m := Machine{Dir: t.TempDir()}
	warnings := &syncBuffer{}
	l, err := createLog(filepath.Join(m.Dir, ConsoleLog), slog.New(slog.NewTextHandler(warnings, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	now := time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)
	l.now = func() time.Time { return now }
	return l, m, &now, warnings
}

func readLog(t *testing.T, m Machine, since time.Time) string {
	t.Helper()
	r, err := m.OpenLog(ConsoleLog, since)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// What was written since a time is found by the second, and nothing is lost.
func TestLogSince(t *testing.T) {
	l, m, now, _ := newLog(t)
	start := *now
	for i := range 5 {
		fmt.Fprintf(l, "line %d\n", i)
		*now = now.Add(10 * time.Second)
	}
	for _, test := range []struct {
		since time.Duration
		first string
	}{
		{-time.Hour, "line 0"}, {0, "line 0"}, {500 * time.Millisecond, "line 0"}, {2 * time.Second, "line 1"},
		{10 * time.Second, "line 1"}, {39 * time.Second, "line 4"}, {42 * time.Second, ""},
	} {
		if got, _, _ := strings.Cut(readLog(t, m, start.Add(test.since)), "\n"); got != test.first {
			t.Errorf("since %v the first line is %q, want %q", test.since, got, test.first)
		}
	}
	if got := readLog(t, m, time.Time{}); !strings.HasPrefix(got, "line 0\n") || !strings.HasSuffix(got, "line 4\n") {
		t.Errorf("the whole log is %q", got)
	}
}

// A log never takes more than twice its limit, and the last of it is there.
func TestLogRotation(t *testing.T) {
	l, m, now, _ := newLog(t)
	line := bytes.Repeat([]byte("x"), 99)
	const lines = 3*maxLog/100 + 1000
	for i := range lines {
		fmt.Fprintf(l, "%s%d\n", line[:99-len(fmt.Sprint(i))], i)
		*now = now.Add(time.Second)
	}
	total := int64(0)
	entries, err := os.ReadDir(m.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		total += fi.Size()
	}
	if limit := int64(2*maxLog + 2*maxTimes); total > limit {
		t.Errorf("the log takes %d bytes, more than %d", total, limit)
	}
	text := readLog(t, m, time.Time{})
	if !strings.HasSuffix(text, fmt.Sprintf("%d\n", lines-1)) {
		t.Errorf("the last line is not there: %q", text[len(text)-100:])
	}
	if n := strings.Count(text, "\n"); n < maxTimes/16 {
		t.Errorf("only %d lines are left", n)
	}
	if text := readLog(t, m, now.Add(-20*time.Second)); strings.Count(text, "\n") != 20 {
		t.Errorf("the last 20 seconds are %d lines", strings.Count(text, "\n"))
	}
}

// A reader that follows goes on with the next log.
func TestLogFollow(t *testing.T) {
	l, m, _, _ := newLog(t)
	fmt.Fprint(l, "first")
	r, err := m.OpenLog(ConsoleLog, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	read := func() string {
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if got := read(); got != "first" || r.Follow() {
		t.Errorf("read %q, or there is another log", got)
	}
	if err := l.rotate(); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(l, "second")
	if got := read(); got != "" || !r.Follow() || r.Follow() {
		t.Errorf("read %q of the old log, or there is no other", got)
	}
	if got := read(); got != "second" {
		t.Errorf("read %q of the new log", got)
	}
}

// A disk that is full hinders nobody, and the log tells what it misses once there is
// room again.
func TestLogFull(t *testing.T) {
	l, m, now, warnings := newLog(t)
	fmt.Fprintf(l, "before\n")
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	file := l.file
	for _, l.file = range []*os.File{full, full, file} {
		if n, err := l.Write([]byte("lost")); n != 4 || err != nil {
			t.Errorf("write returned %d, %v", n, err)
		}
	}
	*now = now.Add(LogTick)
	fmt.Fprintf(l, "after\n")
	if got := warnings.String(); strings.Count(got, "console.log misses what can't be written") != 1 {
		t.Errorf("warnings are %q", got)
	}
	if got, want := readLog(t, m, time.Time{}), "before\n\n[vmrun: 12 bytes are missing here, for which there was no room]\nafter\n"; got != want {
		t.Errorf("the log is %q, want %q", got, want)
	}
}

// Where there is no room for new files, the log begins anew once there is, and
// keeps the one before.
func TestLogFullAtRotation(t *testing.T) {
	l, m, now, _ := newLog(t)
	old := strings.Repeat("o", maxLog)
	fmt.Fprint(l, old)
	times := l.path + timeSuffix
	if err := errors.Join(os.Rename(times, l.path+oldSuffix+timeSuffix), os.Mkdir(times, 0o700)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(l, "lost")
	if err := os.RemoveAll(times); err != nil {
		t.Fatal(err)
	}
	*now = now.Add(LogTick)
	fmt.Fprint(l, "new")
	if got, want := readLog(t, m, time.Time{}), old+"\n[vmrun: 4 bytes are missing here, for which there was no room]\nnew"; got != want {
		t.Errorf("the log has %d bytes, which end in %q; want %d", len(got), got[max(0, len(got)-90):], len(want))
	}
}
