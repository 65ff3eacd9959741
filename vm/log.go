package vm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// ConsoleLog and QEMULog are the names of a machine's logs in its folder.
	ConsoleLog = "console.log"
	QEMULog    = "qemu.log"

	oldSuffix  = ".old"   // of a log before the one at present
	timeSuffix = ".times" // of a log's index

	maxLog   = 4 << 20 // bytes of one log, of which there are two: the runtime folder is memory
	maxTimes = 256 << 10

	// LogTick is how exact the times of a log are.
	LogTick = time.Second
)

// logFile is a log that begins anew when it is full, keeping the one before.
// Beside it stands an index that tells when what was written: an entry is 16
// bytes, a time in nanoseconds since 1970 and an offset in the log, both little
// endian. There is one for each second in which something was written.
type logFile struct {
	path string
	now  func() time.Time
	warn *slog.Logger

	mu    sync.Mutex
	file  *os.File
	times *os.File
	lost  int64     // bytes that there was no room for since the last ones that are in it
	tried time.Time // when that was found out last
	size  int64
	index int64     // bytes of times
	last  time.Time // of the last entry
}

// createLog begins a log, and forgets what an earlier machine left.
func createLog(path string, warn *slog.Logger) (*logFile, error) {
	l := &logFile{path: path, now: time.Now, warn: warn}
	for _, old := range []string{path + oldSuffix, path + oldSuffix + timeSuffix} {
		if err := removeIfThere(old); err != nil {
			return nil, fmt.Errorf("make log: %w", err)
		}
	}
	if err := l.create(); err != nil {
		return nil, fmt.Errorf("make log: %w", err)
	}
	return l, nil
}

// create makes the files, empty.
func (l *logFile) create() (err error) {
	const flags = os.O_RDWR | os.O_CREATE | os.O_TRUNC | os.O_APPEND | syscall.O_NOFOLLOW
	if l.file, err = os.OpenFile(l.path, flags, 0o600); err != nil {
		return err
	}
	if l.times, err = os.OpenFile(l.path+timeSuffix, flags, 0o600); err != nil {
		return errors.Join(err, l.file.Close(), os.Remove(l.path))
	}
	l.size, l.index, l.last = 0, 0, time.Time{}
	return nil
}

// Write appends to the log. It never fails, since a full disk must stop neither
// guest nor QEMU: what is missing is told where it is missing, once there is room.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost > 0 && l.now().Sub(l.tried) < LogTick {
		l.lost += int64(len(p))
		return len(p), nil
	}
	gap := l.gap()
	n, err := l.append(append(gap, p...))
	if err == nil {
		l.lost = 0
		return len(p), nil
	}
	if l.lost == 0 {
		l.warn.Warn(filepath.Base(l.path)+" misses what can't be written", "cause", err)
	}
	l.lost += int64(len(p) - max(0, n-len(gap)))
	l.tried = l.now()
	return len(p), nil
}

// gap is what stands in the log for bytes that are missing before those to come.
func (l *logFile) gap() []byte {
	if l.lost == 0 {
		return nil
	}
	return fmt.Appendf(nil, "\n[vmrun: %d bytes are missing here, for which there was no room]\n", l.lost)
}

// append appends, under the mutex, and tells how much.
func (l *logFile) append(p []byte) (int, error) {
	if l.size+int64(len(p)) > maxLog && l.size > 0 || l.index >= maxTimes {
		if err := l.rotate(); err != nil {
			return 0, err
		}
	}
	if now := l.now(); now.Sub(l.last) >= LogTick || now.Before(l.last) {
		entry := binary.LittleEndian.AppendUint64(nil, uint64(now.UnixNano()))
		entry = binary.LittleEndian.AppendUint64(entry, uint64(l.size))
		if _, err := l.times.Write(entry); err != nil {
			return 0, errors.Join(err, l.times.Truncate(l.index)) // no half of an entry
		}
		l.index += int64(len(entry))
		l.last = now
	}
	n, err := l.file.Write(p)
	l.size += int64(n)
	return n, err
}

// rotate begins a new log, under the mutex. The index is renamed first: whoever
// reads a log without an index reads all of it. Where there was no room for new
// files, the next try finds the old ones renamed.
func (l *logFile) rotate() error {
	before := []*os.File{l.file, l.times}
	var err error
	for _, suffix := range []string{timeSuffix, ""} {
		if e := os.Rename(l.path+suffix, l.path+oldSuffix+suffix); !errors.Is(e, os.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	if err == nil {
		err = l.create()
	}
	if err != nil {
		l.file, l.times = before[0], before[1]
		return fmt.Errorf("begin new log: %w", err)
	}
	return errors.Join(before[0].Close(), before[1].Close())
}

// Close closes the files, which stay.
func (l *logFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.file.Close(), l.times.Close())
}

// mark is where the log ends now, for tail.
func (l *logFile) mark() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.size
}

// logTail is how much of QEMU's log is told in an error, in bytes.
const logTail = 2 << 10

// tail is the end of the log, beginning at a mark at the earliest.
func (l *logFile) tail(from int64) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if from > l.size {
		from = 0 // of the log before
	}
	from = max(from, l.size-logTail)
	text, err := io.ReadAll(io.NewSectionReader(l.file, from, l.size-from))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// logNames are the files of a machine's logs.
func logNames() []string {
	var all []string
	for _, log := range []string{ConsoleLog, QEMULog} {
		all = append(all, log, log+timeSuffix, log+oldSuffix, log+oldSuffix+timeSuffix)
	}
	return all
}

// OpenLog opens a log of a machine, ConsoleLog or QEMULog, at the first line
// that may have been written since a time; the zero time is its beginning. It
// reads the one before it and then the present one, to its end. The caller closes
// it.
func (m Machine) OpenLog(name string, since time.Time) (*LogReader, error) {
	r := &LogReader{path: filepath.Join(m.Dir, name)}
	old, oldErr := openSince(r.path+oldSuffix, since)
	current, err := openSince(r.path, since)
	if err != nil {
		if old != nil {
			err = errors.Join(err, old.Close())
		}
		return nil, fmt.Errorf("open log: %w", err)
	}
	if oldErr == nil && !sameFile(old, current) {
		r.files = append(r.files, old)
	}
	r.files = append(r.files, current)
	return r, nil
}

// openSince opens one log at the place that its index has for a time.
func openSince(path string, since time.Time) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	index, err := os.ReadFile(path + timeSuffix)
	if since.IsZero() || err != nil {
		return f, nil
	}
	if at := placeOf(index, since); at >= 0 {
		_, err = f.Seek(at, io.SeekStart)
	} else {
		_, err = f.Seek(0, io.SeekEnd)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// placeOf is the offset of the first entry whose second is not over at a time;
// -1: all was written before.
func placeOf(index []byte, since time.Time) int64 {
	const size = 16
	for ; len(index) >= size; index = index[size:] {
		at := time.Unix(0, int64(binary.LittleEndian.Uint64(index)))
		if at.Add(LogTick).After(since) {
			return int64(binary.LittleEndian.Uint64(index[8:]))
		}
	}
	return -1
}

func sameFile(a, b *os.File) bool {
	x, err := a.Stat()
	y, err2 := b.Stat()
	return err == nil && err2 == nil && os.SameFile(x, y)
}

// LogReader reads a machine's log. It is not for several goroutines.
type LogReader struct {
	path  string
	files []*os.File // the last one is read on when it grows
}

// Read reads what there is; io.EOF at the end, which may come to be further
// away later.
func (r *LogReader) Read(p []byte) (int, error) {
	for {
		n, err := r.files[0].Read(p)
		if n > 0 || err != io.EOF || len(r.files) == 1 {
			return n, err
		}
		r.files[0].Close()
		r.files = r.files[1:]
	}
}

// Follow looks whether another log has taken the place of the one that was read
// to its end, and goes on with that. It tells whether it was so.
func (r *LogReader) Follow() bool {
	next, err := os.OpenFile(r.path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	if sameFile(r.files[len(r.files)-1], next) {
		next.Close()
		return false
	}
	r.files = append(r.files, next)
	return true
}

// Close closes the log's files.
func (r *LogReader) Close() error {
	var errs []error
	for _, f := range r.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
