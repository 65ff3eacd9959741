package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestDocumentedImports holds that ARCHITECTURE.md has the table that
// TestImports enforces. A folder's own and those below it are not repeated.
func TestDocumentedImports(t *testing.T) {
	got := map[string][]string{}
	for _, row := range table(t, sections(document(t, "ARCHITECTURE.md"), "##")["Packages"], "folder") {
		var folders []string
		switch row[2] {
		case "none":
		case "all":
			folders = []string{"*"}
		default:
			folders = strings.Split(row[2], ", ")
		}
		got[strings.Trim(row[0], "`")] = folders
	}
	want := map[string][]string{}
	for folder, imports := range mayImport {
		want[folder] = nil
		for _, i := range imports {
			if i != folder {
				want[folder] = append(want[folder], i)
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("imports (-enforced +ARCHITECTURE.md):\n%s", diff)
	}
}

// TestDocumentedDependencies holds that ARCHITECTURE.md gives a reason for each
// module that go.mod requires directly, and for no other.
func TestDocumentedDependencies(t *testing.T) {
	var want []string
	for _, m := range regexp.MustCompile(`(?m)^\t(\S+) v\S+$`).FindAllStringSubmatch(document(t, "go.mod"), -1) {
		want = append(want, m[1])
	}
	rows := table(t, sections(document(t, "ARCHITECTURE.md"), "##")["Dependencies"], "module")
	if diff := cmp.Diff(want, column(rows, 0)); diff != "" {
		t.Errorf("modules (-go.mod +ARCHITECTURE.md):\n%s", diff)
	}
}

var (
	namedFile = regexp.MustCompile(`\b[a-z_]+(?:/[a-z_]+)*\.go\b`)
	// A name after a package's: netsetup.Attach; after a type's: Instance.Wait.
	namedIdent = regexp.MustCompile(`\b(?:profiles|images|guest|netsetup|qmp|vm|keeper|[A-Z][a-z]\w*)\.[A-Za-z]\w+\b`)
	// What looks like one and is a file, or of another library.
	noIdent = regexp.MustCompile(`\.(?:go|log|sock)$|^SysProcAttr\.`)
)

// TestDocumentedCode holds that the files and the declarations that
// ARCHITECTURE.md and README.md name are there.
func TestDocumentedCode(t *testing.T) {
	declared := declarations(t)
	for _, file := range []string{"ARCHITECTURE.md", "README.md"} {
		text := document(t, file)
		for _, name := range namedFile.FindAllString(text, -1) {
			if _, err := os.Stat(filepath.Join("..", "..", name)); err != nil {
				t.Errorf("%s names a file that is not there: %s", file, name)
			}
		}
		for _, name := range namedIdent.FindAllString(text, -1) {
			if !declared[name] && !noIdent.MatchString(name) {
				t.Errorf("%s names what is not declared: %s", file, name)
			}
		}
	}
}

// declarations are the functions, types and values of the repository as
// PACKAGE.NAME, and its methods also as TYPE.NAME.
func declarations(t *testing.T) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	for _, folder := range slices.Sorted(maps.Keys(mayImport)) {
		for _, dir := range []string{folder, folder + "/guest"} {
			files, err := filepath.Glob(filepath.Join("..", "..", dir, "*.go"))
			if err != nil {
				t.Fatal(err)
			}
			for _, file := range files {
				declare(t, file, all)
			}
		}
	}
	return all
}

// declare adds what a file declares.
func declare(t *testing.T, file string, all map[string]bool) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			all[owner(f.Name.Name, d)+"."+d.Name.Name] = true
		case *ast.GenDecl:
			for _, s := range d.Specs {
				if s, ok := s.(*ast.TypeSpec); ok {
					all[f.Name.Name+"."+s.Name.Name] = true
				}
			}
		}
	}
}

// owner is the type of a method, or the package of a function.
func owner(pkg string, d *ast.FuncDecl) string {
	if d.Recv == nil {
		return pkg
	}
	typ := d.Recv.List[0].Type
	if star, ok := typ.(*ast.StarExpr); ok {
		typ = star.X
	}
	if name, ok := typ.(*ast.Ident); ok {
		return name.Name
	}
	return pkg
}
