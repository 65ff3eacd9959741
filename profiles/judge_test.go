package profiles

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// compileSchema hands the schema to a validator that knows nothing of this
// package, as an editor's does.
func compileSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	text, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource("vmrun.schema.json", parsed); err != nil {
		t.Fatal(err)
	}
	schema, err := compiler.Compile("vmrun.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

func TestSchemaTakesGoodProfiles(t *testing.T) {
	schema := compileSchema(t)
	for _, pattern := range []string{"testdata/*.toml", "testdata/good/*.toml", "../examples/*.toml"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("no profiles: %s, %v", pattern, err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := schema.Validate(parseTOML(t, string(text))); err != nil {
				t.Errorf("%s: %v", file, err)
			}
		}
	}
}

// TestSchemaRefuses changes one thing of a sound profile at a time.
func TestSchemaRefuses(t *testing.T) {
	schema := compileSchema(t)
	const sound = "boot.kernel = \"auto\"\n[[nics]]\nnetwork = \"lan\"\n[networks.lan]\nmode = \"nat\"\n"
	if err := schema.Validate(parseTOML(t, sound)); err != nil {
		t.Errorf("the sound profile: %v", err)
	}
	for name, change := range map[string][2]string{
		"unknown key":        {"[[nics]]\n", "[machine]\nmemroy = \"1GiB\"\n[[nics]]\n"},
		"wrong case":         {"[[nics]]\n", "[machine]\nCPUS = 1\n[[nics]]\n"},
		"unknown word":       {"\"nat\"", "\"natt\""},
		"key of another":     {"\"nat\"", "\"nat\"\nvlan = 10"},
		"number for a text":  {"\"auto\"", "5"},
		"text for a number":  {"[[nics]]\n", "[machine]\ncpus = \"2\"\n[[nics]]\n"},
		"out of range":       {"[[nics]]\n", "[machine]\ncpus = 0\n[[nics]]\n"},
		"size without unit":  {"[[nics]]\n", "[machine]\nmemory = \"512\"\n[[nics]]\n"},
		"card without one":   {"network = \"lan\"", "mac = \"52:54:00:00:00:01\""},
		"name of a built-in": {"[networks.lan]", "[networks.user]"},
		"name with a comma":  {"boot.kernel", "name = \"a,b\"\nboot.kernel"},
	} {
		changed := strings.Replace(sound, change[0], change[1], 1)
		if changed == sound {
			t.Fatalf("%s: the change changes nothing", name)
		}
		if err := schema.Validate(parseTOML(t, changed)); err == nil {
			t.Errorf("%s: the schema takes\n%s", name, changed)
		}
	}
}

// parseTOML gives a profile as a validator sees it.
func parseTOML(t *testing.T, text string) any {
	t.Helper()
	var document map[string]any
	if err := toml.Unmarshal([]byte(text), &document); err != nil {
		t.Fatal(err)
	}
	return document
}
