package profiles

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

const (
	maxFile    = 1 << 20 // bytes of one file
	maxExtends = 8       // files that one profile may build on
)

var errTooLarge = errors.New("larger than 1 MiB")

// Load reads and checks the profile at path and the files that it extends. An
// error is of type Faults if the text of a file is at fault, and otherwise
// says why path can't be read.
func Load(path string) (*Profile, error) {
	text, err := readFile(path)
	if err != nil && !errors.Is(err, errTooLarge) {
		return nil, fmt.Errorf("load profile: %w", err)
	}
	return parse(text, err, path)
}

// Parse reads and checks a profile. The name of the file that the text is of
// need not exist: it stands in messages, gives the profile its default name,
// and paths in the text are relative to its folder. Files that the text
// extends are read. An error is of type Faults unless r gave it.
func Parse(r io.Reader, file string) (*Profile, error) {
	text, err := readText(r)
	if err != nil && !errors.Is(err, errTooLarge) {
		return nil, fmt.Errorf("read profile %s: %w", file, err)
	}
	return parse(text, err, file)
}

// LoadNetworks reads and checks the file at path for its networks alone: those
// that it defines, and the built-in ones that its NICs name, by name. The file
// need not describe a whole machine, but what is in it is checked as by Load. A
// network of mode user is a fault, since it is QEMU's own and nothing that could
// be there without a machine.
func LoadNetworks(path string) ([]Network, error) {
	text, err := readFile(path)
	if err != nil && !errors.Is(err, errTooLarge) {
		return nil, fmt.Errorf("load networks: %w", err)
	}
	document, err := parseFile(text, err, path)
	if err != nil {
		return nil, err
	}
	var faults Faults
	networks := resolveNetworksOnly(document, &faults)
	if err := faults.err(); err != nil {
		return nil, err
	}
	return networks, nil
}

// parse takes what reading the file gave, of which only errTooLarge may be an
// error.
func parse(text []byte, tooLarge error, file string) (*Profile, error) {
	document, err := parseFile(text, tooLarge, file)
	if err != nil {
		return nil, err
	}
	var faults Faults
	profile := resolve(document, &faults)
	if err := faults.err(); err != nil {
		return nil, err
	}
	return profile, nil
}

// parseFile parses a file and those that it extends.
func parseFile(text []byte, tooLarge error, file string) (*node, error) {
	path, err := filepath.Abs(file)
	if err != nil {
		return nil, fmt.Errorf("locate profile: %w", err)
	}
	src := &source{shown: file, path: path}
	if tooLarge != nil {
		return nil, src.fault(1, "%v", tooLarge)
	}
	if len(text) == 0 {
		return nil, src.fault(1, "the file is empty")
	}
	document, faults := load(src, text, nil)
	return document, faults.err()
}

// readFile reads a file whole. It neither waits for the writer of a FIFO nor
// reads a device.
func readFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("not a regular file")}
	}
	return readText(f)
}

func readText(r io.Reader) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxFile {
		return nil, errTooLarge
	}
	return text, nil
}

// load parses a file and lays it over the files that it extends. The files
// that led to this one are above.
func load(src *source, text []byte, above []*source) (*node, Faults) {
	document, faults := parseDocument(src, text)
	if faults != nil {
		return nil, faults
	}
	extends := document.child("extends")
	if extends == nil || extends.kind != kindString {
		return document, nil
	}
	above = append(above, src)
	base := src.relative(extends.text)
	text, err := readBase(base, above)
	if err != nil {
		return nil, Faults{{File: src.shown, Line: extends.line, Key: "extends", Text: err.Error()}}
	}
	under, faults := load(base, text, above)
	if faults != nil {
		return nil, faults
	}
	delete(under.keys, "extends")
	return merge(under, document), nil
}

func readBase(base *source, above []*source) ([]byte, error) {
	for i, s := range above {
		if s.path == base.path {
			return nil, fmt.Errorf("goes round in a circle: %s", route(append(slices.Clip(above[i:]), base)))
		}
	}
	if len(above) > maxExtends {
		return nil, fmt.Errorf("more than %d files deep: %s", maxExtends, route(above))
	}
	text, err := readFile(base.path)
	var path *fs.PathError
	if errors.As(err, &path) {
		return nil, fmt.Errorf("read %s: %w", quote(base.shown), path.Err)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", quote(base.shown), err)
	}
	return text, nil
}

func route(files []*source) string {
	names := make([]string, len(files))
	for i, s := range files {
		names[i] = filepath.Base(s.path)
	}
	return strings.Join(names, " → ")
}

// relative is the file that path means where it is written in s.
func (s *source) relative(path string) *source {
	if filepath.IsAbs(path) {
		return &source{shown: path, path: filepath.Clean(path)}
	}
	return &source{
		shown: filepath.Join(filepath.Dir(s.shown), path),
		path:  filepath.Join(filepath.Dir(s.path), path),
	}
}

// merge lays one document over another: tables merge, anything else replaces.
// A merged table stands where the upper one does.
func merge(under, over *node) *node {
	if under.kind != kindTable || over.kind != kindTable {
		return over
	}
	for key, n := range under.keys {
		if o := over.keys[key]; o != nil {
			n = merge(n, o)
		}
		over.keys[key] = n
	}
	return over
}
