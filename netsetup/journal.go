package netsetup

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// journal is a network's list of things to undo, one JSON object a line. An
// entry is written before the step that it undoes, and crossed out by a second
// line once it has been undone. The file lives on a tmpfs and survives the
// death of any process; after a reboot there is nothing to undo.
//
// A journal belongs to whoever holds the network's lock, and is not for use by
// several goroutines. What it lists is of one network namespace.
type journal struct {
	path    string
	file    *os.File
	in      place
	of      *place // where the network is of, if the journal is damaged
	by      string // who writes, for whoever can't read it later
	next    int
	entries []entry // not undone yet, oldest first
	torn    bool    // the last write has failed, and may have left a part of a line
	damaged bool    // it may have listed more than can be read
	log     *slog.Logger
}

// entry is one line: an undo, or the crossing out of an earlier one.
type entry struct {
	Version int         `json:"v"`
	By      string      `json:"by,omitempty"` // the version of vmrun that wrote it
	In      *place      `json:"in,omitempty"` // where the undo has to be done; nil: written before that was noted
	Seq     int         `json:"seq"`
	Undo    *undoEntry  `json:"undo,omitempty"`
	Port    *portRecord `json:"port,omitempty"` // the port that the undo belongs to
	Done    int         `json:"done,omitempty"` // the entry that is crossed out
}

// portRecord is what a new keeper has to know of a port whose keeper died.
type portRecord struct {
	ID    string     `json:"id"`
	UID   uint32     `json:"uid"`
	Spec  PortSpec   `json:"spec"`
	Link  string     `json:"link"`
	IP    netip.Addr `json:"ip,omitzero"`
	Since time.Time  `json:"since"`
}

// openJournal reads what is left to undo and opens the file for more. A journal of
// another network namespace is not opened, and an *ElsewhereError says so: whoever
// looked here for what it lists would find nothing, and take it for undone.
func openJournal(dir string, log *slog.Logger) (*journal, error) {
	j, err := readJournal(dir, log)
	if err != nil {
		return nil, err
	}
	if where := j.elsewhere(); where != nil {
		return nil, &ElsewhereError{Namespace: where.Net, Journal: j.path}
	}
	f, err := os.OpenFile(j.path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	j.file = f
	// A line torn by a crash must not swallow the next one.
	if _, err := f.WriteString("\n"); err != nil {
		return nil, errors.Join(fmt.Errorf("write journal: %w", err), f.Close())
	}
	return j, nil
}

// readJournal reads what is left to undo. Lines that were torn by a crash are
// skipped: their step was never done. So are those that are no entries of any
// version, but the journal counts as damaged then, as does one where a number is
// missing, one without a line and one that was removed. A network that has no
// spec.json was down, and nothing is missing.
func readJournal(dir string, log *slog.Logger) (*journal, error) {
	in, err := here()
	if err != nil {
		return nil, err
	}
	j := &journal{path: filepath.Join(dir, "journal"), in: in, next: 1, log: log}
	err = j.read()
	spec := filepath.Join(dir, specName)
	if j.damaged = j.damaged && exists(spec); j.damaged {
		if saved, err := loadSpec(spec); err == nil {
			j.of = saved.In
		}
	}
	return j, err
}

func (j *journal) read() error {
	text, err := os.ReadFile(j.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read journal: %w", err)
	}
	empty := true
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if len(lines.Bytes()) == 0 {
			continue
		}
		empty = false
		var e entry
		if json.Unmarshal(lines.Bytes(), &e) != nil || e.Version == 0 {
			j.log.Warn("skipped a line that is torn or foreign", "journal", j.path)
			j.damaged = j.damaged || !isTorn(lines.Bytes())
			continue
		}
		if err := j.replay(e); err != nil {
			return fmt.Errorf("read journal %s: %w", j.path, err)
		}
	}
	j.damaged = j.damaged || empty
	return lines.Err()
}

// isTorn tells the beginning of an entry, as a crash leaves it, from what no
// vmrun wrote.
func isTorn(line []byte) bool {
	err := json.NewDecoder(bytes.NewReader(line)).Decode(&entry{})
	return line[0] == '{' && errors.Is(err, io.ErrUnexpectedEOF)
}

func (j *journal) replay(e entry) error {
	if e.Version != journalVersion {
		return fmt.Errorf("written by %s (its format %d, ours %d); end its VMs, and undo what is left, with that version",
			e.writer(), e.Version, journalVersion)
	}
	j.damaged = j.damaged || e.Seq != j.next
	if e.Done != 0 {
		j.entries = slices.DeleteFunc(j.entries, func(x entry) bool { return x.Seq == e.Done })
		return nil
	}
	j.next = max(j.next, e.Seq+1)
	if e.Undo == nil {
		return errors.New("an entry without operation")
	}
	if _, err := e.Undo.decode(); err != nil {
		return fmt.Errorf("written by %s: %w", e.writer(), err)
	}
	j.entries = append(j.entries, e)
	return nil
}

// elsewhere is where the journal is of, if that is another network namespace than
// this one; nil also where nothing says so.
func (j *journal) elsewhere() *place {
	if j.of != nil && !j.of.sameNet(j.in) {
		return j.of
	}
	for _, e := range j.entries {
		if e.In != nil && !e.In.sameNet(j.in) {
			return e.In
		}
	}
	return nil
}

// writer names who wrote an entry.
func (e entry) writer() string {
	if e.By == "" {
		return "another version of vmrun"
	}
	return e.By
}

// record notes an undo, before its step is done. One that a last run has left is
// noted already.
func (j *journal) record(u undoOp) error {
	enc, err := encodeUndo(u)
	if err != nil {
		return err
	}
	for _, noted := range j.general() {
		if noted.Kind == enc.Kind && bytes.Equal(noted.Arg, enc.Arg) {
			return nil
		}
	}
	_, err = j.recordPort(u, nil)
	return err
}

// recordPort notes the undo of a port and returns its number.
func (j *journal) recordPort(u undoOp, port *portRecord) (int, error) {
	enc, err := encodeUndo(u)
	if err != nil {
		return 0, err
	}
	e := entry{Version: journalVersion, By: j.by, In: &j.in, Seq: j.next, Undo: &enc, Port: port}
	if err := j.write(e); err != nil {
		return 0, err
	}
	j.next++
	j.entries = append(j.entries, e)
	return e.Seq, nil
}

func (j *journal) write(e entry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode journal entry: %w", err)
	}
	line = append(line, '\n')
	if j.torn {
		line = append([]byte("\n"), line...)
	}
	// One write a line: another process never reads half of one.
	_, err = j.file.Write(line)
	j.torn = err != nil
	if err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	return nil
}

// cross notes that an entry has been undone.
func (j *journal) cross(seq int) error {
	j.entries = slices.DeleteFunc(j.entries, func(x entry) bool { return x.Seq == seq })
	return j.write(entry{Version: journalVersion, By: j.by, Seq: j.next, Done: seq})
}

func (j *journal) logStep(s step) { j.log.Info("step", "do", s.do.String()) }

// undo runs all that is left, past failures, and returns all failures joined.
// What could not be undone stays in the journal. Newest first comes what is
// quick; then, at the same time, what each waits for grace periods of the
// kernel: rules, and all links of the network at once.
func (j *journal) undo(w *effects) error {
	var errs []error
	var slow []*undoing
	byGroup := map[uint32]*undoing{}
	for _, e := range slices.Backward(slices.Clone(j.entries)) {
		u, err := e.Undo.decode()
		switch u := u.(type) {
		case delLinks:
			if byGroup[u.Group] == nil {
				byGroup[u.Group] = &undoing{op: delLinks{Group: u.Group}}
				slow = append(slow, byGroup[u.Group])
			}
			byGroup[u.Group].add(e.Seq, u)
		case delRules, delTables:
			slow = append(slow, &undoing{op: u, seqs: []int{e.Seq}})
		case nil:
			errs = append(errs, err)
		default:
			errs = append(errs, j.undoOne(w, e.Seq, u))
		}
	}
	return errors.Join(append(errs, j.undoTogether(w, slow))...)
}

// undoLast is undo for a network that nobody is left of, and closes the journal.
func (j *journal) undoLast(w *effects) error {
	err := j.undo(w)
	if j.done() {
		err = errors.Join(err, settleFolder(filepath.Dir(j.path)))
	}
	return errors.Join(err, j.close())
}

// undoing is an undo for one or several entries.
type undoing struct {
	op   undoOp
	seqs []int
	err  error
}

func (u *undoing) add(seq int, more delLinks) {
	d := u.op.(delLinks)
	d.Names, d.Titles = append(d.Names, more.Names...), append(d.Titles, more.Titles...)
	u.op, u.seqs = d, append(u.seqs, seq)
}

// undoTogether runs undos at the same time; the journal is written afterwards.
func (j *journal) undoTogether(w *effects, all []*undoing) error {
	var running sync.WaitGroup
	for _, u := range all {
		running.Go(func() {
			faultPoint(rightBefore, u.op)
			u.err = u.op.do(w)
			faultPoint(rightAfter, u.op)
		})
	}
	running.Wait()
	var errs []error
	for _, u := range all {
		if u.err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", u.op, u.err))
			continue
		}
		j.log.Info("undone", "undo", u.op.String())
		for _, seq := range u.seqs {
			errs = append(errs, j.cross(seq))
		}
	}
	return errors.Join(errs...)
}

// undoOne does an undo and crosses its entry out, also where it stays incomplete:
// nobody could do more later.
func (j *journal) undoOne(w *effects, seq int, u undoOp) error {
	faultPoint(rightBefore, u)
	err := u.do(w)
	if err != nil {
		err = fmt.Errorf("%s: %w", u, err)
	}
	if _, ok := errors.AsType[incomplete](err); err != nil && !ok {
		return err
	}
	faultPoint(rightAfter, u)
	j.log.Info("undone", "undo", u.String())
	return errors.Join(err, j.cross(seq))
}

// undoEntry undoes the entry of that number.
func (j *journal) undoEntry(w *effects, seq int) error {
	i := slices.IndexFunc(j.entries, func(e entry) bool { return e.Seq == seq })
	if i < 0 {
		return nil
	}
	u, err := j.entries[i].Undo.decode()
	if err != nil {
		return err
	}
	return j.undoOne(w, seq, u)
}

// undos maps the numbers of the entries to what they undo.
func (j *journal) undos() map[int]undoOp {
	undos := map[int]undoOp{}
	for _, e := range j.entries {
		if u, err := e.Undo.decode(); err == nil {
			undos[e.Seq] = u
		}
	}
	return undos
}

// ports lists the entries that are ports.
func (j *journal) ports() []entry {
	var ports []entry
	for _, e := range j.entries {
		if e.Port != nil {
			ports = append(ports, e)
		}
	}
	return ports
}

// general lists the undos that are of no port, oldest first.
func (j *journal) general() []undoEntry {
	var all []undoEntry
	for _, e := range j.entries {
		if e.Port == nil {
			all = append(all, *e.Undo)
		}
	}
	return all
}

// done tells that nothing is left to undo.
func (j *journal) done() bool { return len(j.entries) == 0 && !j.damaged }

// close ends the journal; it is removed when nothing is left to undo, unless
// somebody has done so.
func (j *journal) close() error {
	err := j.file.Close()
	if j.done() {
		err = errors.Join(err, removeWritten(j.path))
	}
	return err
}
