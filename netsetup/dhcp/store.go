package dhcp

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// The file of a lease table is a header and one JSON line per change, the last
// one of a MAC or an address being the true one. Its keeper's lock sees to it
// that one process at a time writes it. A change is written before the
// client hears of it, so that a killed keeper's successor knows of each lease; a
// write(2) is enough for that. Only a file that is rewritten as a whole is
// synced to disk.

const storeHeader = `{"vmrun":"leases","version":1}`

// rewriteSize is how many bytes of changes a file takes before it is rewritten.
const rewriteSize = 4 << 20

type store struct {
	path    string
	file    *os.File
	changes int // bytes since the file was rewritten
}

// readStore reads the leases of a file, the later ones later. What can't be
// read is told and left out; a file that isn't ours is moved aside.
func readStore(path string, log quiet) ([]lease, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(data) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read lease file: %w", err)
	}
	lines := bytes.Split(data, []byte("\n"))
	if string(lines[0]) != storeHeader {
		aside := path + ".unreadable"
		log.warn("lease file is not of this version, starting without leases", "path", path, "moved to", aside)
		if err := os.Rename(path, aside); err != nil {
			return nil, fmt.Errorf("move lease file aside: %w", err)
		}
		return nil, nil
	}
	var leases []lease
	for _, line := range lines[1:] {
		var e lease
		if len(line) == 0 {
			continue
		}
		if err := json.Unmarshal(line, &e); err != nil {
			log.warn("lease file has a damaged line", "path", path, "err", err)
			continue
		}
		leases = append(leases, e)
	}
	return leases, nil
}

// createStore writes a file anew, with the table as it is.
func createStore(path string, table map[mac]*lease) (*store, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make lease file's folder: %w", err)
	}
	s := &store{path: path}
	if err := s.rewrite(table); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *store) append(e *lease, table map[mac]*lease) error {
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode lease: %w", err)
	}
	// The newline comes first: it also ends a line that was torn by a full disk.
	n, err := s.file.Write(append([]byte{'\n'}, line...))
	if err != nil {
		return fmt.Errorf("append to lease file: %w", err)
	}
	if s.changes += n; s.changes > rewriteSize {
		return s.rewrite(table)
	}
	return nil
}

// rewrite replaces the file in one rename. The old one stays in use if that
// doesn't work.
func (s *store) rewrite(table map[mac]*lease) error {
	f, err := os.OpenFile(s.path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write lease file: %w", err)
	}
	if err := errors.Join(writeTable(f, table), f.Sync()); err != nil {
		return errors.Join(fmt.Errorf("write lease file: %w", err), f.Close(), os.Remove(f.Name()))
	}
	if err := os.Rename(f.Name(), s.path); err != nil {
		return errors.Join(fmt.Errorf("write lease file: %w", err), f.Close(), os.Remove(f.Name()))
	}
	old := s.file
	s.file, s.changes = f, 0
	if old != nil {
		return old.Close()
	}
	return nil
}

func writeTable(f *os.File, table map[mac]*lease) error {
	w := bufio.NewWriter(f)
	fmt.Fprintln(w, storeHeader)
	enc := json.NewEncoder(w)
	for _, e := range table {
		if e.Since.IsZero() {
			continue
		}
		if err := enc.Encode(e); err != nil {
			return err
		}
	}
	return w.Flush()
}

func (s *store) close(table map[mac]*lease) error {
	return errors.Join(s.rewrite(table), s.file.Close())
}
