package profiles

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
	"github.com/rogpeppe/go-internal/txtar"
)

// FuzzParse holds that whatever the text, Parse gives a profile or faults,
// each on one line and with a line of the text, and the same again the second
// time.
func FuzzParse(f *testing.F) {
	addSeeds(f)
	f.Fuzz(func(t *testing.T, text []byte) {
		if bytes.Contains(text, []byte("extends")) {
			t.Skip("reads other files")
		}
		profile, err := Parse(bytes.NewReader(text), "vm.toml")
		again, errAgain := Parse(bytes.NewReader(text), "vm.toml")
		if !reflect.DeepEqual(profile, again) || !reflect.DeepEqual(err, errAgain) {
			t.Fatalf("first %+v, %v\nthen %+v, %v", profile, err, again, errAgain)
		}
		if err == nil {
			return
		}
		var faults Faults
		if !errors.As(err, &faults) || len(faults) == 0 || profile != nil {
			t.Fatalf("Parse: %v, %v", profile, err)
		}
		lines := bytes.Count(text, []byte("\n")) + 1
		for i, fault := range faults {
			if fault.Line < 1 || fault.Line > lines || fault.File != "vm.toml" || fault.Text == "" {
				t.Errorf("%#v, of %d lines", fault, lines)
			}
			if i > 0 && fault.Line < faults[i-1].Line {
				t.Errorf("%v comes after %v", fault, faults[i-1])
			}
			if s := fault.Error(); strings.ContainsAny(s, "\n\r\x1b") || len(s) > 1000 {
				t.Errorf("not a line: %q", s)
			}
		}
	})
}

// FuzzDocument holds that the tree of a document has the values that the TOML
// library decodes.
func FuzzDocument(f *testing.F) {
	addSeeds(f)
	f.Fuzz(func(t *testing.T, text []byte) {
		document, faults := parseDocument(&source{shown: "vm.toml"}, text)
		if faults != nil {
			return
		}
		var want map[string]any
		if err := toml.Unmarshal(bytes.TrimPrefix(text, []byte("\ufeff")), &want); err != nil {
			t.Fatal(err)
		}
		// Of floats, dates and times only the presence is compared.
		if got := plain(t, document); !reflect.DeepEqual(got, withoutOthers(want)) {
			t.Errorf("library: %.1000v\ntree:    %.1000v", want, got)
		}
	})
}

func plain(t *testing.T, n *node) any {
	switch n.kind {
	case kindTable:
		values := make(map[string]any)
		for key, child := range n.keys {
			values[key] = plain(t, child)
		}
		return values
	case kindArray:
		values := make([]any, len(n.items))
		for i, item := range n.items {
			values[i] = plain(t, item)
		}
		return values
	case kindString:
		return n.text
	case kindBool:
		return n.text == "true"
	case kindInteger:
		i, err := strconv.ParseInt(n.text, 0, 64)
		if err != nil {
			t.Error(err)
		}
		return i
	}
	return nil
}

func withoutOthers(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key, child := range v {
			v[key] = withoutOthers(child)
		}
		return v
	case []any:
		for i, item := range v {
			v[i] = withoutOthers(item)
		}
		return v
	case string, bool, int64:
		return v
	}
	return nil
}

func addSeeds(f *testing.F) {
	f.Helper()
	paths, err := filepath.Glob("testdata/good/*.toml")
	if err != nil || len(paths) == 0 {
		f.Fatalf("no profiles: %v", err)
	}
	for _, path := range append(paths, "testdata/reference.toml") {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	archives, err := filepath.Glob("testdata/faults/*.txtar")
	if err != nil || len(archives) == 0 {
		f.Fatalf("no archives: %v", err)
	}
	for _, path := range archives {
		archive, err := txtar.ParseFile(path)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range archive.Files {
			f.Add(file.Data)
		}
	}
	for _, text := range []string{
		"\x00\x01\x02\xff",
		"\x7fELF",
		"a=" + strings.Repeat("[", 9999) + strings.Repeat("]", 9999),
		strings.Repeat("a.", 4000) + "b=1",
		"[" + strings.Repeat("a.", 2000) + "b]\n[[a.a.c]]\n[a.a.c.d]\n[[a.a.c]]\n",
		"a={" + strings.Repeat("b={", 500) + strings.Repeat("}", 501),
		"machine.cpus = 99999999999999999999999999",
		"machine.cpus = 0x7fffffffffffffff\nmachine.memory = \"99999999999999999999999TiB\"",
		"a = 0b1_0\nb = 0o17\nc = +5\nd = -0\ne = inf\nf = 1979-05-27T07:32:00Z\ng = '''\nx'''\n",
		"nics = [{}, {}, []]\n\"\" = 1\n'' = 2",
		"\"\\u001b[31m\" = 1\n[networks.\"\\u0000\"]\n",
		"\ufeff\r\n\r\nboot.kernel = 'auto'\r\n",
	} {
		f.Add([]byte(text))
	}
}
