package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/control"
)

// schemaEntry is a part of QEMU's own description of its protocol (QMP reference,
// SchemaInfo). Which of the fields it has, MetaType says.
type schemaEntry struct {
	Name     string         `json:"name"`
	MetaType string         `json:"meta-type"`
	ArgType  string         `json:"arg-type"`
	Element  string         `json:"element-type"`
	JSONType string         `json:"json-type"`
	Members  []schemaMember `json:"members"`
	Values   []string       `json:"values"`
	Variants []struct {
		Case string `json:"case"`
		Type string `json:"type"`
	} `json:"variants"`
}

type schemaMember struct {
	Name string `json:"name"`
	Type string `json:"type"`
}

// qmpSchema is all that a QEMU says of its protocol, by name.
type qmpSchema map[string]schemaEntry

func loadSchema(ctx context.Context, m vm.Machine, timeout time.Duration) (qmpSchema, error) {
	reply, err := control.QMP(ctx, m, "query-qmp-schema", nil, timeout)
	if err != nil {
		return nil, err
	}
	return parseSchema(reply)
}

func parseSchema(text []byte) (qmpSchema, error) {
	var entries []schemaEntry
	if err := json.Unmarshal(text, &entries); err != nil {
		return nil, fmt.Errorf("parse QMP schema: %w", err)
	}
	s := qmpSchema{}
	for _, e := range entries {
		s[e.Name] = e
	}
	return s, nil
}

// commands are the names of all commands, ordered.
func (s qmpSchema) commands() []string {
	var names []string
	for name, e := range s {
		if e.MetaType == "command" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// members are the keys of an object type, those of its variants with them.
func (s qmpSchema) members(name string) []schemaMember {
	e := s[name]
	all := slices.Clone(e.Members)
	for _, v := range e.Variants {
		all = append(all, s.members(v.Type)...)
	}
	return all
}

// values are the words that a type takes; none where it takes more than some.
func (s qmpSchema) values(name string) []string {
	switch e := s[name]; {
	case e.MetaType == "enum":
		if len(e.Values) > 0 {
			return e.Values
		}
		var names []string
		for _, m := range e.Members {
			names = append(names, m.Name)
		}
		return names
	case e.MetaType == "builtin" && e.JSONType == "boolean":
		return []string{"true", "false"}
	}
	return nil
}

// complete returns what the last word of a line may become: a command, the key of
// an argument with its "=", or an argument's value.
func (s qmpSchema) complete(line string) (start int, candidates []string) {
	start = strings.LastIndexByte(line, ' ') + 1
	word := line[start:]
	fields := strings.Fields(line[:start])
	if len(fields) == 0 {
		return start, having(s.commands(), word)
	}
	arg := s[fields[0]].ArgType
	key, value, isValue := strings.Cut(word, "=")
	path := strings.Split(key, ".")
	for _, step := range path[:len(path)-1] {
		arg = s.typeOf(arg, step)
	}
	last := path[len(path)-1]
	if isValue {
		return start + len(key) + 1, having(s.values(s.typeOf(arg, last)), value)
	}
	var keys []string
	for _, m := range s.members(arg) {
		suffix := "="
		if s[m.Type].MetaType == "object" {
			suffix = "."
		}
		keys = append(keys, m.Name+suffix)
	}
	return start + len(key) - len(last), having(keys, last)
}

// typeOf is the type of an object's member; "" if there is none.
func (s qmpSchema) typeOf(object, member string) string {
	for _, m := range s.members(object) {
		if m.Name == member {
			return m.Type
		}
	}
	return ""
}

// having are the words that begin with a prefix, each once, ordered.
func having(words []string, prefix string) []string {
	var fit []string
	for _, w := range words {
		if strings.HasPrefix(w, prefix) {
			fit = append(fit, w)
		}
	}
	slices.Sort(fit)
	return slices.Compact(fit)
}

// commonPrefix is what all words begin with.
func commonPrefix(words []string) string {
	if len(words) == 0 {
		return ""
	}
	prefix := words[0]
	for _, w := range words[1:] {
		for !strings.HasPrefix(w, prefix) {
			prefix = prefix[:len(prefix)-1]
		}
	}
	return prefix
}
