package profiles

import (
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// place is a spot of a document that is being looked at: it knows its key and
// its line, and takes the faults that are found there. A place may lack a
// value; its line is then that of the table which should have it.
type place struct {
	node   *node // nil: the document has no such key
	src    *source
	line   int
	key    string
	faults *Faults
}

func placeOf(document *node, faults *Faults) place {
	return place{node: document, src: document.src, line: document.line, faults: faults}
}

// at is the place of a key of the table that stands here.
func (p place) at(key string) place {
	name := keyName(key)
	if p.key != "" {
		name = p.key + "." + name
	}
	if p.node == nil {
		return p.to(nil, name)
	}
	return p.to(p.node.child(key), name)
}

// item is the place of an element of the array that stands here.
func (p place) item(i int) place {
	return p.to(p.node.items[i], p.key+"["+strconv.Itoa(i)+"]")
}

func (p place) to(n *node, key string) place {
	p.node, p.key = n, key
	if n != nil {
		p.src, p.line = n.src, n.line
	}
	return p
}

// exists tells whether the document has a value here, sound or not.
func (p place) exists() bool { return p.node != nil }

// isTable tells whether a table stands here.
func (p place) isTable() bool { return p.node != nil && p.node.kind == kindTable }

// names are the keys of the table that stands here, ordered.
func (p place) names() []string {
	if !p.isTable() {
		return nil
	}
	return slices.Sorted(maps.Keys(p.node.keys))
}

// path is the file that a path written here means.
func (p place) path(path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(filepath.Dir(p.src.path), path)
}

func (p place) faultf(format string, args ...any) {
	*p.faults = append(*p.faults, Fault{File: p.src.shown, Line: p.line, Key: p.key, Text: fmt.Sprintf(format, args...)})
}

// check takes the error of a value as a fault, and tells whether there is none.
func (p place) check(err error) bool {
	if err != nil {
		p.faultf("%v", err)
	}
	return err == nil
}

// pattern is compiled when it is first needed: each start of vmrun would have to
// wait for it else.
func pattern(text string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(text) })
}

var bareKey = pattern(`^[A-Za-z0-9_-]{1,63}$`)

// keyName writes a key as TOML does.
func keyName(key string) string {
	if bareKey().MatchString(key) {
		return key
	}
	return quote(strings.ToValidUTF8(key, "?"))
}
