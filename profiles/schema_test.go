package profiles

import (
	"encoding/json"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// schemaNode is the part of JSON Schema that the tests look at.
type schemaNode struct {
	Properties           map[string]*schemaNode
	Items                *schemaNode
	AdditionalProperties json.RawMessage
	Description          string
	Default              any
	Enum                 []string
}

func parseSchema(t *testing.T) *schemaNode {
	t.Helper()
	text, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	var root schemaNode
	if err := json.Unmarshal(text, &root); err != nil {
		t.Fatal(err)
	}
	return &root
}

// walk calls visit with each key of the schema: "networks.*.mode".
func (n *schemaNode) walk(t *testing.T, path string, visit func(path string, n *schemaNode)) {
	t.Helper()
	for _, key := range slices.Sorted(maps.Keys(n.Properties)) {
		property := n.Properties[key]
		name := strings.TrimPrefix(path+"."+key, ".")
		visit(name, property)
		property.walk(t, name, visit)
		if property.Items != nil {
			property.Items.walk(t, name, visit)
		}
		if len(property.AdditionalProperties) > 0 && property.AdditionalProperties[0] == '{' {
			var named schemaNode
			if err := json.Unmarshal(property.AdditionalProperties, &named); err != nil {
				t.Fatal(err)
			}
			named.walk(t, name+".*", visit)
		}
	}
}

// TestReference holds that testdata/reference.toml has every key that the
// schema has, and no other.
func TestReference(t *testing.T) {
	want := make(map[string]bool)
	parseSchema(t).walk(t, "", func(path string, _ *schemaNode) { want[path] = true })

	text, err := os.ReadFile("testdata/reference.toml")
	if err != nil {
		t.Fatal(err)
	}
	document, faults := parseDocument(&source{shown: "reference.toml"}, text)
	if faults != nil {
		t.Fatal(faults)
	}
	got := make(map[string]bool)
	documentKeys(document, "", got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("keys (-schema +reference.toml):\n%s", diff)
	}
}

func documentKeys(n *node, path string, keys map[string]bool) {
	for key, child := range n.keys {
		name := strings.TrimPrefix(path+"."+key, ".")
		if path == "networks" {
			name = "networks.*"
		} else {
			keys[name] = true
		}
		documentKeys(child, name, keys)
		for _, item := range child.items {
			documentKeys(item, name, keys)
		}
	}
}

// TestSchemaTexts holds that an editor has something to say about every key.
func TestSchemaTexts(t *testing.T) {
	parseSchema(t).walk(t, "", func(path string, n *schemaNode) {
		if !strings.HasSuffix(n.Description, ".") {
			t.Errorf("%s: description %q is not a sentence", path, n.Description)
		}
	})
}

// TestSchemaDefaults holds that writing every default of the schema into a
// profile changes nothing.
func TestSchemaDefaults(t *testing.T) {
	const silent = "boot.kernel = \"auto\"\n[[disks]]\npath = \"a.img\"\n[[nics]]\nnetwork = \"lan\"\n[networks.lan]\nmode = \"nat\"\n"
	defaults := make(map[string]string)
	parseSchema(t).walk(t, "", func(path string, n *schemaNode) {
		if n.Default == nil {
			return
		}
		value, err := json.Marshal(n.Default)
		if err != nil {
			t.Fatal(err)
		}
		dot := strings.LastIndex(path, ".")
		defaults[path[:dot]] += path[dot+1:] + " = " + string(value) + "\n"
	})
	written := strings.NewReplacer(
		"[[disks]]\n", "[[disks]]\n"+defaults["disks"],
		"[[nics]]\n", "[[nics]]\n"+defaults["nics"],
		"[networks.lan]\n", "[machine]\n"+defaults["machine"]+"[networks.lan]\n"+defaults["networks.*"],
	).Replace(silent)
	if n := strings.Count(written, "\n") - strings.Count(silent, "\n"); n < 12 {
		t.Fatalf("only %d defaults were found", n)
	}
	want, err := Parse(strings.NewReader(silent), "vm.toml")
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(strings.NewReader(written), "vm.toml")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(dump("", reflect.ValueOf(*want)), dump("", reflect.ValueOf(*got))); diff != "" {
		t.Errorf("(-silent +written):\n%s", diff)
	}
}

// TestModesAreComplete holds that the table of modes and the raw types know
// the same modes and keys.
func TestModesAreComplete(t *testing.T) {
	var inTable []string
	networkTaken, nicTaken := map[string]bool{"mode": true}, map[string]bool{"network": true, "mac": true}
	for _, m := range modes {
		inTable = append(inTable, string(m.mode))
		for _, key := range m.network {
			networkTaken[key] = true
		}
		for _, key := range m.nic {
			nicTaken[key] = true
		}
	}
	network := reflect.TypeFor[rawNetwork]()
	if diff := cmp.Diff(fieldsOf(network)[0].enum, inTable); diff != "" {
		t.Errorf("modes (-words +table):\n%s", diff)
	}
	compareKeys(t, knownKeys(network), networkTaken)
	compareKeys(t, knownKeys(reflect.TypeFor[rawNIC]()), nicTaken)
}

func compareKeys(t *testing.T, known []string, taken map[string]bool) {
	t.Helper()
	slices.Sort(known)
	if diff := cmp.Diff(known, slices.Sorted(maps.Keys(taken))); diff != "" {
		t.Errorf("keys (-type +table of modes):\n%s", diff)
	}
}

// TestTags holds that the tags of the raw types can be used as the decoder
// uses them.
func TestTags(t *testing.T) {
	for _, table := range []reflect.Type{
		reflect.TypeFor[rawProfile](), reflect.TypeFor[rawMachine](), reflect.TypeFor[rawBoot](),
		reflect.TypeFor[rawDisk](), reflect.TypeFor[rawNIC](), reflect.TypeFor[rawNetwork](),
	} {
		for _, f := range fieldsOf(table) {
			kind := table.Field(f.index).Type
			if kind.Kind() == reflect.Pointer && kind.Elem().Kind() == reflect.Int && f.max == 0 {
				t.Errorf("%v.%s: an integer without a range", table, f.key)
			}
			if f.key == "" || f.unsupported() != (kind.Kind() == reflect.Interface) {
				t.Errorf("%v.%s: wrong key, or wrong type for a key that is not supported", table, f.key)
			}
		}
	}
}
