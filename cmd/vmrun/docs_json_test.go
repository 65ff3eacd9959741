package main

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestDocumentedJSON holds that docs/json.md has the names that ps and inspect
// print, and no others.
func TestDocumentedJSON(t *testing.T) {
	part := sections(document(t, "docs/json.md"), "##")["ps and inspect"]
	machine, nics, _ := strings.Cut(part, "Of each of `nics`:")
	for _, test := range []struct {
		text string
		of   reflect.Type
	}{{machine, reflect.TypeFor[inspection]()}, {nics, reflect.TypeFor[nicInfo]()}} {
		want := jsonNames(test.of)
		got := column(table(t, test.text, "name"), 0)
		slices.Sort(want)
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("names (-%v +docs/json.md):\n%s", test.of, diff)
		}
	}
}

// jsonNames are the names that a struct has in JSON, with those of the structs in
// it that have none of their own.
func jsonNames(t reflect.Type) []string {
	var names []string
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous {
			names = append(names, jsonNames(f.Type)...)
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		names = append(names, name)
	}
	return names
}
