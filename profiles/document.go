package profiles

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// maxKeys is how many keys a file may hold. The TOML library looks for
// repeated keys in quadratic time: a mebibyte of short keys takes it half a
// minute, this many a few milliseconds.
const maxKeys = 4096

// source is a file of TOML text.
type source struct {
	shown string // the path as messages give it
	path  string // absolute
}

// fault makes a fault of the file as a whole.
func (s *source) fault(line int, format string, args ...any) Faults {
	return Faults{{File: s.shown, Line: line, Text: fmt.Sprintf(format, args...)}}
}

// kind is what a value of a document is. Its text serves in messages.
type kind string

const (
	kindTable   kind = "a table"
	kindArray   kind = "an array"
	kindString  kind = "a string"
	kindInteger kind = "an integer"
	kindBool    kind = "a boolean"
	kindFloat   kind = "a float"
	kindTime    kind = "a date or time"
)

// node is one value of a document and where it stands. The library decodes
// without positions, so the document is kept as a tree of these.
type node struct {
	src  *source
	line int // of the key; in an array, of the element
	kind kind

	text  string           // the string itself, or any other scalar as it is written
	keys  map[string]*node // of a table
	items []*node          // of an array
}

func (n *node) child(key string) *node {
	if n.kind != kindTable {
		return nil
	}
	return n.keys[key]
}

// parseDocument turns text into a tree. What is wrong with the text as TOML
// ends it at the first fault.
func parseDocument(src *source, text []byte) (*node, Faults) {
	if faults := checkText(src, text); faults != nil {
		return nil, faults
	}
	// Windows editors put a byte order mark first. Clipped, so that the
	// parser's offsets end where the text ends.
	text = slices.Clip(bytes.TrimPrefix(text, []byte("\ufeff")))
	if n := countKeys(text); n > maxKeys {
		return nil, src.fault(1, "more than %d keys", maxKeys)
	}
	var whole map[string]any
	if err := toml.Unmarshal(text, &whole); err != nil {
		return nil, src.fault(errorLine(err), "%s", strings.TrimPrefix(err.Error(), "toml: "))
	}
	b := newBuilder(src, text)
	if err := b.build(); err != nil {
		return nil, src.fault(1, "%v", err)
	}
	return b.root, nil
}

// checkText finds what no TOML file holds, so that a kernel image given by
// mistake is called what it is.
func checkText(src *source, text []byte) Faults {
	for line, s := range bytes.Split(text, []byte("\n")) {
		if i := bytes.IndexByte(s, 0); i >= 0 {
			return src.fault(line+1, "not a text file: NUL byte in column %d", i+1)
		}
		if !utf8.Valid(s) {
			return src.fault(line+1, "not a text file: invalid UTF-8")
		}
	}
	return nil
}

func errorLine(err error) int {
	var decode *toml.DecodeError
	if errors.As(err, &decode) {
		line, _ := decode.Position()
		return max(line, 1)
	}
	return 1
}

// countKeys counts the parts of all keys up to the first syntax error.
func countKeys(text []byte) int {
	var p unstable.Parser
	p.Reset(text)
	n := 0
	for p.NextExpression() {
		n += countNode(p.Expression())
	}
	return n
}

func countNode(n *unstable.Node) int {
	count := 0
	if n.Kind == unstable.Key {
		count = 1
	}
	for it := n.Children(); it.Next(); {
		count += countNode(it.Node())
	}
	return count
}

// builder makes a tree of a document that is known to be sound: tables don't
// contradict each other and every scalar has a value.
type builder struct {
	src    *source
	parser unstable.Parser
	lines  []int // offset of each line's end
	line   int   // of the key that was looked at last
	root   *node
}

func newBuilder(src *source, text []byte) *builder {
	b := &builder{src: src}
	for i, c := range text {
		if c == '\n' {
			b.lines = append(b.lines, i)
		}
	}
	b.parser.Reset(text)
	b.line = 1
	b.root = b.table()
	return b
}

func (b *builder) build() error {
	table := b.root
	for b.parser.NextExpression() {
		switch n := b.parser.Expression(); n.Kind {
		case unstable.Table:
			parent, last := b.walk(b.root, n.Key())
			table = b.enter(parent, last)
		case unstable.ArrayTable:
			parent, last := b.walk(b.root, n.Key())
			table = b.extend(parent, last)
		case unstable.KeyValue:
			b.set(table, n)
		}
	}
	return b.parser.Error()
}

// walk enters the tables that all parts of a key but its last one name.
func (b *builder) walk(table *node, key unstable.Iterator) (parent *node, last string) {
	for key.Next() {
		part := key.Node()
		b.line = b.lineAt(part.Raw.Offset)
		if key.IsLast() {
			return table, string(part.Data)
		}
		table = b.enter(table, string(part.Data))
	}
	return table, ""
}

// enter finds or makes the table called key; in an array of tables it is the
// last one.
func (b *builder) enter(parent *node, key string) *node {
	n := parent.keys[key]
	if n == nil {
		n = b.table()
		parent.keys[key] = n
	}
	if n.kind == kindArray {
		return n.items[len(n.items)-1]
	}
	return n
}

// extend appends a table to the array called key.
func (b *builder) extend(parent *node, key string) *node {
	array := parent.keys[key]
	if array == nil {
		array = &node{src: b.src, line: b.line, kind: kindArray}
		parent.keys[key] = array
	}
	n := b.table()
	array.items = append(array.items, n)
	return n
}

func (b *builder) set(table *node, n *unstable.Node) {
	parent, last := b.walk(table, n.Key())
	parent.keys[last] = b.value(n.Value())
}

func (b *builder) table() *node {
	return &node{src: b.src, line: b.line, kind: kindTable, keys: make(map[string]*node)}
}

func (b *builder) value(n *unstable.Node) *node {
	if n.Raw.Length > 0 {
		b.line = b.lineAt(n.Raw.Offset)
	}
	if n.Kind == unstable.InlineTable {
		table := b.table()
		for it := n.Children(); it.Next(); {
			b.set(table, it.Node())
		}
		return table
	}
	v := &node{src: b.src, line: b.line, kind: kindOf(n.Kind)}
	if v.kind != kindArray {
		v.text = string(n.Data)
		return v
	}
	for it := n.Children(); it.Next(); {
		v.items = append(v.items, b.value(it.Node()))
	}
	return v
}

func (b *builder) lineAt(offset uint32) int {
	return sort.SearchInts(b.lines, int(offset)) + 1
}

func kindOf(k unstable.Kind) kind {
	switch k {
	case unstable.Array:
		return kindArray
	case unstable.String:
		return kindString
	case unstable.Integer:
		return kindInteger
	case unstable.Bool:
		return kindBool
	case unstable.Float:
		return kindFloat
	}
	return kindTime
}
