package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmrun/vmrun/profiles"
)

// schema is the part of the JSON Schema that docs/profile.md tells.
type schema struct {
	Type                 string
	Pattern              string
	Enum                 []string
	Minimum, Maximum     int
	Default              any
	Properties           map[string]*schema
	Items                *schema
	AdditionalProperties json.RawMessage
	AllOf                []struct {
		If struct {
			Properties struct{ Mode struct{ Const string } }
		}
		Then struct {
			PropertyNames struct{ Enum []string }
		}
	}
}

// named is what the values of a table of tables are; nil: it is none.
func (s *schema) named(t *testing.T) *schema {
	t.Helper()
	if len(s.AdditionalProperties) == 0 || s.AdditionalProperties[0] != '{' {
		return nil
	}
	var values schema
	if err := json.Unmarshal(s.AdditionalProperties, &values); err != nil {
		t.Fatal(err)
	}
	return &values
}

// typeText is how the document tells the type.
func (s *schema) typeText(t *testing.T) string {
	switch {
	case s.Enum != nil:
		return "`" + strings.Join(s.Enum, "`, `") + "`"
	case s.Type == "integer":
		return fmt.Sprintf("integer, %d to %d", s.Minimum, s.Maximum)
	case s.Type == "array" && s.Items.Type == "object":
		return "array of tables"
	case s.Type == "array":
		return "array of strings"
	case s.Type == "object" && s.named(t) != nil:
		return "table of tables"
	case s.Type == "object":
		return "table"
	case strings.HasSuffix(s.Pattern, "B$"):
		return "size"
	}
	return s.Type
}

// profileSchema is the schema of each section of docs/profile.md.
func profileSchema(t *testing.T) map[string]*schema {
	t.Helper()
	text, err := profiles.Schema()
	if err != nil {
		t.Fatal(err)
	}
	var root schema
	if err := json.Unmarshal(text, &root); err != nil {
		t.Fatal(err)
	}
	return map[string]*schema{
		"Top level": &root,
		"machine":   root.Properties["machine"],
		"boot":      root.Properties["boot"],
		"disks":     root.Properties["disks"].Items,
		"nics":      root.Properties["nics"].Items,
		"networks":  root.Properties["networks"].named(t),
	}
}

// TestDocumentedKeys holds that docs/profile.md has the schema's keys, with their
// types and defaults.
func TestDocumentedKeys(t *testing.T) {
	parts := sections(document(t, "docs/profile.md"), "##")
	for title, s := range profileSchema(t) {
		rows := table(t, parts[title], "key")
		want := slices.Sorted(maps.Keys(s.Properties))
		if diff := cmp.Diff(want, slices.Sorted(slices.Values(column(rows, 0)))); diff != "" {
			t.Errorf("keys of %s (-schema +docs/profile.md):\n%s", title, diff)
			continue
		}
		for _, row := range rows {
			key := s.Properties[strings.Trim(row[0], "`")]
			if want := key.typeText(t); row[1] != want {
				t.Errorf("%s: type of %s is %s; the schema has %s", title, row[0], row[1], want)
			}
			if want := fmt.Sprintf("`%v`", key.Default); key.Default != nil && row[2] != want {
				t.Errorf("%s: default of %s is %s; the schema has %s", title, row[0], row[2], want)
			}
		}
	}
}

// modeOrder is the order in which the document lists modes.
var modeOrder = []string{"nat", "host-only", "bridge", "vlan", "user"}

// modesText is how the document tells the modes that take a key.
func modesText(takes func(mode string) bool) string {
	var all []string
	for _, mode := range modeOrder {
		if takes(mode) {
			all = append(all, mode)
		}
	}
	if len(all) == len(modeOrder) {
		return "all"
	}
	return strings.Join(all, ", ")
}

// TestDocumentedModesOfKeys holds that the document says of each key which modes
// take it: of networks as the schema has it, of NICs as trying tells.
func TestDocumentedModesOfKeys(t *testing.T) {
	parts := sections(document(t, "docs/profile.md"), "##")
	networks := profileSchema(t)["networks"]
	for _, row := range table(t, parts["networks"], "key") {
		want := modesText(func(mode string) bool { return networks.taken(mode, strings.Trim(row[0], "`")) })
		if row[3] != want {
			t.Errorf("networks: modes of %s are %s; the schema has %s", row[0], row[3], want)
		}
	}
	for _, row := range table(t, parts["nics"], "key") {
		want := modesText(func(mode string) bool { return nicTakes(t, mode, strings.Trim(row[0], "`")) })
		if row[3] != want {
			t.Errorf("nics: modes of %s are %s; vmrun takes it in %s", row[0], row[3], want)
		}
	}
}

// taken tells whether a network of the mode takes a key.
func (s *schema) taken(mode, key string) bool {
	for _, m := range s.AllOf {
		if m.If.Properties.Mode.Const == mode {
			return slices.Contains(m.Then.PropertyNames.Enum, key)
		}
	}
	return false
}

// nicTakes tries a key of a NIC on a network of the mode.
func nicTakes(t *testing.T, mode, key string) bool {
	t.Helper()
	network := map[string]string{
		"nat":       `subnet = "10.70.0.0/24"`,
		"host-only": `subnet = "10.70.0.0/24"`,
		"bridge":    `bridge = "br0"`,
		"vlan":      "subnet = \"10.70.0.0/24\"\nuplink = \"eth1\"\nvlan = 10",
	}[mode]
	value, known := map[string]string{
		"network": `"lan"`, "mac": `"52:54:00:aa:bb:cc"`, "ip": `"10.70.0.10"`, "forward": `["8080:80"]`,
		"queues": "2", "trunk": "true", "spoof": "true",
	}[key]
	if !known {
		t.Fatalf("no value to try for key %s of a NIC", key)
	}
	nic := "network = \"lan\"\n"
	if key != "network" {
		nic += key + " = " + value + "\n"
	}
	text := fmt.Sprintf("[[nics]]\n%s[networks.lan]\nmode = %q\n%s\n", nic, mode, network)
	_, err := profiles.Parse(strings.NewReader(text), "web.toml")
	if faults, bad := errors.AsType[profiles.Faults](err); bad && !strings.Contains(faults[0].Text, "this key") {
		t.Fatalf("try key %s in mode %s: %v", key, mode, faults)
	}
	return err == nil
}
