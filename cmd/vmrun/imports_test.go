package main

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/vmrun/vmrun/"

// mayImport is who may import whom: the folders of ours that the packages of a
// folder, and of those below it, may use besides themselves. The longest entry
// that fits a package counts. A * stands for all.
var mayImport = map[string][]string{
	"profiles":          {},
	"images":            {},
	"internal/fanout":   {},
	"netsetup":          {"netsetup", "internal/fanout"},
	"netsetup/capture":  {},
	"netsetup/dhcp":     {},
	"netsetup/dns":      {},
	"netsetup/firewall": {},
	"netsetup/libvirt":  {},
	"netsetup/uplink":   {},
	"qmp":               {},
	"vm":                {"profiles", "images", "netsetup", "qmp", "vm"},
	"vm/agent":          {"images"},
	"vm/control":        {"vm", "qmp", "images", "profiles", "internal/fanout"},
	"vm/qemu":           {},
	"vm/wire":           {},
	"docs":              {},
	"cmd/vmrun":         {"*"},
	"integration":       {"*"},
}

// TestImports enforces the table, in tests as well.
func TestImports(t *testing.T) {
	root := filepath.Join("..", "..")
	err := fs.WalkDir(os.DirFS(root), ".", func(file string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") && d.Name() != "."):
			return fs.SkipDir
		case d.IsDir() || path.Ext(file) != ".go":
			return nil
		}
		for _, imported := range oursIn(t, filepath.Join(root, file)) {
			if !allowed(path.Dir(file), imported) {
				t.Errorf("%s imports %s", file, imported)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAllowed(t *testing.T) {
	for _, tt := range []struct {
		from, to string
		want     bool
	}{
		{"vm", "netsetup", true},
		{"vm", "vm/qemu", true},
		{"vm/qemu", "profiles", false},
		{"vm/agent", "images/guest/wire", true},
		{"vm/agent", "vm", false},
		{"netsetup", "netsetup/dhcp", true},
		{"netsetup", "vm", false},
		{"netsetup/dhcp", "netsetup", false},
		{"netsetup/dns", "netsetup/dhcp", false},
		{"images", "images/guest", true},
		{"images/guest", "images", true},
		{"profiles", "images", false},
		{"qmp", "vm", false},
		{"cmd/vmrun", "images/guest", true},
		{"util", "vm", false},
		{"vm", "cmd/vmrun", false},
		{"vmx", "vm", false},
	} {
		if got := allowed(tt.from, tt.to); got != tt.want {
			t.Errorf("allowed(%s, %s) = %v", tt.from, tt.to, got)
		}
	}
}

// allowed tells whether the package in folder from may import the one in to.
func allowed(from, to string) bool {
	entry := from
	for mayImport[entry] == nil {
		if entry = path.Dir(entry); entry == "." {
			return false
		}
	}
	return within(to, entry) || slices.ContainsFunc(mayImport[entry], func(folder string) bool {
		return folder == "*" || within(to, folder)
	})
}

func within(folder, parent string) bool {
	return folder == parent || strings.HasPrefix(folder, parent+"/")
}

// oursIn lists the folders of ours that a source file imports.
func oursIn(t *testing.T, file string) []string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
	if err != nil {
		t.Error(err)
		return nil
	}
	var ours []string
	for _, spec := range f.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			t.Error(err)
		}
		if folder, ok := strings.CutPrefix(imported, module); ok {
			ours = append(ours, folder)
		}
	}
	return ours
}
