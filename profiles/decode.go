package profiles

import (
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// field is what the tags of a raw type's field say.
type field struct {
	index             int
	key               string
	doc, example, why string
	initial           string // the default
	enum, later       []string
	min, max          int
}

// unsupported tells whether the whole key is left to a later version.
func (f *field) unsupported() bool { return slices.Equal(f.later, []string{"*"}) }

func fieldsOf(t reflect.Type) []field {
	var fields []field
	for i := range t.NumField() {
		tag := t.Field(i).Tag
		f := field{
			index: i, key: tag.Get("toml"), doc: tag.Get("doc"), example: tag.Get("example"),
			why: tag.Get("why"), initial: tag.Get("default"),
			enum: words(tag.Get("enum")), later: words(tag.Get("later")),
		}
		f.min, _ = strconv.Atoi(tag.Get("min"))
		f.max, _ = strconv.Atoi(tag.Get("max"))
		fields = append(fields, f)
	}
	return fields
}

func words(list string) []string {
	if list == "" {
		return nil
	}
	return strings.Split(list, ",")
}

// knownKeys are the keys of a raw table type that may be written.
func knownKeys(t reflect.Type) []string {
	var keys []string
	for _, f := range fieldsOf(t) {
		if !f.unsupported() {
			keys = append(keys, f.key)
		}
	}
	return keys
}

// decodeTable fills a raw struct from the table at p. What does not fit is a
// fault, and its field stays nil.
func decodeTable(p place, into reflect.Value) {
	if !p.isTable() {
		p.faultf("must be a table, not %s", p.node.kind)
		return
	}
	fields := fieldsOf(into.Type())
	for _, key := range p.names() {
		i := slices.IndexFunc(fields, func(f field) bool { return f.key == key })
		switch {
		case i < 0:
			p.to(p.node.keys[key], p.key).faultf("unknown key %s: %s", quote(key), guessKey(key, into.Type()))
		case fields[i].unsupported():
			p.at(key).faultf("not supported yet")
		default:
			decodeField(p.at(key), &fields[i], into.Field(fields[i].index))
		}
	}
}

// guessKey says which key of a table was meant, or else of which other table
// the key is: under the wrong header it is a frequent slip of TOML.
func guessKey(key string, t reflect.Type) string {
	known := knownKeys(t)
	if nearest(key, known) != "" {
		return guess(key, known)
	}
	if slices.Contains(knownKeys(reflect.TypeFor[rawProfile]()), key) {
		return "it belongs above the first table"
	}
	if header := headerWith(key); header != "" {
		return "it is a key of " + header
	}
	return guess(key, known)
}

// headerWith is the header of the table that has the key.
func headerWith(key string) string {
	root := reflect.TypeFor[rawProfile]()
	for _, f := range fieldsOf(root) {
		header, t := "", root.Field(f.index).Type
		switch t.Kind() {
		case reflect.Struct:
			header = "[" + f.key + "]"
		case reflect.Slice:
			header, t = "[["+f.key+"]]", t.Elem()
		case reflect.Map:
			header, t = "["+f.key+".NAME]", t.Elem()
		default:
			continue
		}
		if slices.Contains(knownKeys(t), key) {
			return header
		}
	}
	return ""
}

func decodeField(p place, f *field, into reflect.Value) {
	switch t := into.Type(); t.Kind() {
	case reflect.Struct:
		decodeTable(p, into)
	case reflect.Map:
		decodeTables(p, into)
	case reflect.Slice:
		decodeArray(p, f, into)
	case reflect.Pointer:
		value := reflect.New(t.Elem())
		if decodeScalar(p, f, value.Elem()) {
			into.Set(value)
		}
	}
}

// decodeTables fills a map of raw structs from a table of tables.
func decodeTables(p place, into reflect.Value) {
	if !p.isTable() {
		p.faultf("must be a table of tables, not %s: write [%s.NAME]", p.node.kind, p.key)
		return
	}
	into.Set(reflect.MakeMap(into.Type()))
	for _, name := range p.names() {
		value := reflect.New(into.Type().Elem()).Elem()
		decodeTable(p.at(name), value)
		into.SetMapIndex(reflect.ValueOf(name), value)
	}
}

// decodeArray fills a slice so that its indexes are those of the array.
func decodeArray(p place, f *field, into reflect.Value) {
	tables := into.Type().Elem().Kind() == reflect.Struct
	if p.node.kind != kindArray {
		if tables {
			p.faultf("must be an array of tables, not %s: write [[%s]]", p.node.kind, p.key)
		} else {
			p.faultf("must be an array of strings, not %s", p.node.kind)
		}
		return
	}
	n := len(p.node.items)
	into.Set(reflect.MakeSlice(into.Type(), n, n))
	for i := range n {
		if tables {
			decodeTable(p.item(i), into.Index(i))
		} else {
			decodeScalar(p.item(i), f, into.Index(i))
		}
	}
}

// decodeScalar sets into from the scalar at p and tells whether it could.
func decodeScalar(p place, f *field, into reflect.Value) bool {
	want := kindString
	switch into.Kind() {
	case reflect.Bool:
		want = kindBool
	case reflect.Int:
		want = kindInteger
	}
	if p.node.kind != want {
		p.faultf("must be %s%s, not %s", want, sample(f, want), p.node.kind)
		return false
	}
	if text, ok := into.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return p.check(text.UnmarshalText([]byte(p.node.text)))
	}
	switch want {
	case kindBool:
		into.SetBool(p.node.text == "true")
		return true
	case kindInteger:
		return decodeInteger(p, f, into)
	}
	return decodeString(p, f, into)
}

// sample shows what a string looks like to somebody who wrote another kind.
func sample(f *field, want kind) string {
	switch {
	case want != kindString:
		return ""
	case f.example != "":
		return fmt.Sprintf(" such as %q", f.example)
	case f.enum != nil:
		return " such as " + strconv.Quote(f.enum[0])
	}
	return ""
}

func decodeInteger(p place, f *field, into reflect.Value) bool {
	n, err := strconv.ParseInt(p.node.text, 0, 64)
	if err == nil && int64(f.min) <= n && n <= int64(f.max) {
		into.SetInt(n)
		return true
	}
	why := ""
	if f.why != "" {
		why = ": " + f.why
	}
	p.faultf("%s is out of range %d to %d%s", p.node.text, f.min, f.max, why)
	return false
}

func decodeString(p place, f *field, into reflect.Value) bool {
	s := p.node.text
	switch {
	case strings.ContainsRune(s, 0):
		p.faultf("%s contains a NUL character", quote(s))
		return false
	case slices.Contains(f.later, s):
		p.faultf("%q is not supported yet", s)
		return false
	case f.enum != nil && !slices.Contains(f.enum, s):
		p.faultf("unknown word %s: %s", quote(s), guess(s, f.enum))
		return false
	}
	into.SetString(s)
	return true
}
