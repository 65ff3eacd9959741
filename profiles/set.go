package profiles

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// LoadWith is Load of a profile in which keys are set anew, each by a text such
// as machine.cpus=4 or nics[0].ip=10.70.0.9. The value is TOML's; one that is not
// is a string, so that a shell's user need not quote twice. The result is checked
// as the file is; relative paths in values are relative to the working folder.
func LoadWith(path string, settings []string) (*Profile, error) {
	text, err := readFile(path)
	if err != nil && !errors.Is(err, errTooLarge) {
		return nil, fmt.Errorf("load profile: %w", err)
	}
	document, err := parseFile(text, err, path)
	if err != nil {
		return nil, err
	}
	var faults Faults
	for _, s := range settings {
		faults = append(faults, apply(document, s)...)
	}
	if faults == nil {
		profile := resolve(document, &faults)
		if faults == nil {
			return profile, nil
		}
	}
	return nil, faults.err()
}

// apply sets one key of a document.
func apply(document *node, setting string) Faults {
	key, value, ok := strings.Cut(setting, "=")
	path, err := filepath.Abs("setting")
	src := &source{shown: "--set " + strings.TrimSpace(key), path: path}
	if err != nil {
		return src.fault(0, "%v", err)
	}
	steps, err := parseKey(strings.TrimSpace(key))
	switch {
	case !ok:
		return src.fault(0, "want KEY=VALUE")
	case err != nil:
		return src.fault(0, "%v", err)
	case steps[0].key == "extends":
		return src.fault(0, "a profile that is built on is named in the file")
	}
	if err := put(document, steps, settingValue(src, value)); err != nil {
		return src.fault(0, "%v", err)
	}
	return nil
}

// step is a part of a key: a name, with an index where that is of an array.
type step struct {
	key   string
	index int // -1: none
}

var keyStep = pattern(`^([A-Za-z0-9_-]{1,63})(?:\[([0-9]{1,4})\])?$`)

// parseKey parses a dotted key with indexes, as messages have it.
func parseKey(text string) ([]step, error) {
	var steps []step
	for part := range strings.SplitSeq(text, ".") {
		m := keyStep().FindStringSubmatch(part)
		if m == nil {
			return nil, fmt.Errorf("%s is no key: want names with dots between them, as machine.cpus or nics[0].ip", quote(text))
		}
		s := step{key: m[1], index: -1}
		if m[2] != "" {
			s.index, _ = strconv.Atoi(m[2])
		}
		steps = append(steps, s)
	}
	return steps, nil
}

// settingValue is the value of a setting: TOML, or else a string.
func settingValue(src *source, text string) *node {
	const key = "value"
	n := &node{src: src, kind: kindString, text: text}
	if document, faults := parseDocument(src, []byte(key+" = "+text)); faults == nil && len(document.keys) == 1 {
		if v := document.keys[key]; v != nil {
			n = v
		}
	}
	n.forgetLines()
	return n
}

// forgetLines takes away the lines of a value that no file has.
func (n *node) forgetLines() {
	n.line = 0
	for _, k := range n.keys {
		k.forgetLines()
	}
	for _, i := range n.items {
		i.forgetLines()
	}
}

// put puts a value in its place, making the tables on the way.
func put(table *node, steps []step, value *node) error {
	s := steps[0]
	if table.kind != kindTable {
		return fmt.Errorf("%s is in no table", s.key)
	}
	last := len(steps) == 1
	if s.index < 0 {
		if last {
			table.keys[s.key] = value
			return nil
		}
		if table.keys[s.key] == nil {
			table.keys[s.key] = &node{src: value.src, kind: kindTable, keys: map[string]*node{}}
		}
		return put(table.keys[s.key], steps[1:], value)
	}
	return placeItem(table, steps, value)
}

// placeItem puts a value into an array, which may grow by one.
func placeItem(table *node, steps []step, value *node) error {
	s := steps[0]
	array := table.keys[s.key]
	if array == nil {
		array = &node{src: value.src, kind: kindArray}
	}
	if array.kind != kindArray || s.index > len(array.items) {
		return fmt.Errorf("there is no %s[%d]: %s has %d elements", s.key, s.index, s.key, len(array.items))
	}
	array.items = slices.Clone(array.items)
	if s.index == len(array.items) {
		array.items = append(array.items, &node{src: value.src, kind: kindTable, keys: map[string]*node{}})
	}
	table.keys[s.key] = array
	if len(steps) == 1 {
		array.items[s.index] = value
		return nil
	}
	return put(array.items[s.index], steps[1:], value)
}
