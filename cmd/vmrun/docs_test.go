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
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/vmrun/vmrun/profiles"
)

// documents are the repository's, by their path in it.
var documents = []string{"README.md", "ARCHITECTURE.md", "CHANGELOG.md", "docs/profile.md", "docs/agents.md", "docs/networks.md", "docs/exit-codes.md", "docs/tutorial.md", "docs/systemd.md"}

// document reads a file of the repository.
func document(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", file))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// sections are the parts of a document by the heading above them; a part ends
// at the next heading of the same or a higher level.
func sections(text, level string) map[string]string {
	parts := map[string]string{}
	title := ""
	fenced := false
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "```") {
			fenced = !fenced
		}
		hashes, heading, found := strings.Cut(strings.TrimSpace(line), " ")
		if found && !fenced && strings.Trim(hashes, "#") == "" && len(hashes) <= len(level) {
			if title = ""; hashes == level {
				title = heading
			}
			continue
		}
		if title != "" {
			parts[title] += line
		}
	}
	return parts
}

// blocks are the fenced blocks of a language.
func blocks(text, language string) []string {
	var all []string
	for _, m := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```$").FindAllStringSubmatch(text, -1) {
		all = append(all, m[1])
	}
	return all
}

// table is the first table in a text whose first column is headed by head, row
// by row and without its head.
func table(t *testing.T, text, head string) [][]string {
	t.Helper()
	var rows [][]string
	inside := false
	for line := range strings.Lines(text) {
		cells := strings.Split(strings.ReplaceAll(strings.TrimSpace(line), `\|`, "\x00"), "|")
		if len(cells) < 3 {
			if inside {
				break
			}
			continue
		}
		cells = cells[1 : len(cells)-1]
		for i := range cells {
			cells[i] = strings.ReplaceAll(strings.TrimSpace(cells[i]), "\x00", "|")
		}
		if inside && !strings.HasPrefix(cells[0], "---") {
			rows = append(rows, cells)
		}
		inside = inside || cells[0] == head
	}
	if len(rows) == 0 {
		t.Fatalf("no table of %q", head)
	}
	return rows
}

// column is one column of a table, without the marks of code.
func column(rows [][]string, i int) []string {
	var all []string
	for _, row := range rows {
		all = append(all, strings.ReplaceAll(row[i], "`", ""))
	}
	return all
}

// TestDocumentedProfiles holds that every profile that a document shows is a
// good one.
func TestDocumentedProfiles(t *testing.T) {
	for _, file := range documents {
		for _, text := range blocks(document(t, file), "toml") {
			if _, err := profiles.Parse(strings.NewReader(text), "web.toml"); err != nil {
				t.Errorf("%s shows a profile that is at fault:\n%v\n%s", file, err, text)
			}
		}
	}
}

// TestDocumentedModes holds that the README has for each example a picture and
// the example's profile.
func TestDocumentedModes(t *testing.T) {
	examples, err := filepath.Glob(filepath.Join("..", "..", "examples", "*.toml"))
	if err != nil {
		t.Fatal(err)
	}
	modes := sections(sections(document(t, "README.md"), "##")["The five modes"], "###")
	for _, example := range examples {
		mode := strings.TrimSuffix(filepath.Base(example), ".toml")
		text := modes[mode]
		delete(modes, mode)
		if n := len(blocks(text, "mermaid")); n != 1 {
			t.Errorf("mode %s has %d pictures", mode, n)
		}
		want := []string{withoutComments(document(t, "examples/"+mode+".toml"))}
		if diff := cmp.Diff(want, blocks(text, "toml")); diff != "" {
			t.Errorf("mode %s: profile (-example +README):\n%s", mode, diff)
		}
	}
	for mode := range modes {
		t.Errorf("mode %s has no example", mode)
	}
	reach := func(file, section string) map[string][]string {
		about := map[string][]string{}
		for _, row := range table(t, sections(document(t, file), "##")[section], "mode") {
			mode, _, _ := strings.Cut(strings.Trim(row[0], "[`"), "`")
			about[mode] = row[1:]
		}
		return about
	}
	if diff := cmp.Diff(reach("README.md", "The five modes"), reach("docs/networks.md", "Modes")); diff != "" {
		t.Errorf("modes (-README +docs/networks.md):\n%s", diff)
	}
}

// withoutComments strips the comments of an example, which has no # in strings.
func withoutComments(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		bare, _, comment := strings.Cut(line, "#")
		if bare = strings.TrimRight(bare, " \n"); !comment || bare != "" {
			b.WriteString(bare + "\n")
		}
	}
	return strings.TrimLeft(b.String(), "\n")
}

// TestDocumentedCommands holds that the README's table has all commands, that
// the flags in it are theirs, and that its shell lines can be typed.
func TestDocumentedCommands(t *testing.T) {
	root := newRootCommand(new(styleFlags))
	root.InitDefaultCompletionCmd("run")
	readme := document(t, "README.md")
	var got, want []string
	for _, row := range table(t, readme, "command") {
		words := strings.Fields(strings.Trim(row[0], "`"))
		if argument := slices.IndexFunc(words, func(w string) bool { return strings.Trim(w, "abcdefghijklmnopqrstuvwxyz") != "" }); argument > 0 {
			words = words[:argument]
		}
		name := strings.Join(words, " ")
		got = append(got, name)
		for _, flag := range regexp.MustCompile(`--[a-z-]+`).FindAllString(row[1], -1) {
			if c, _, err := root.Find(words); err != nil || c.Flags().Lookup(flag[2:]) == nil {
				t.Errorf("command %s has no flag %s", name, flag)
			}
		}
	}
	for _, c := range root.Commands() {
		switch {
		case c.Hidden || c.IsAdditionalHelpTopicCommand():
		case c.HasSubCommands() && c.Name() != "completion":
			for _, sub := range c.Commands() {
				want = append(want, c.Name()+" "+sub.Name())
			}
		default:
			want = append(want, c.Name())
		}
	}
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("commands (-vmrun +README):\n%s", diff)
	}
	for _, block := range blocks(readme, "sh") {
		for line := range strings.Lines(block) {
			checkShell(t, root, line)
		}
	}
}

// checkShell tries a line of the README: a make target, or a vmrun command.
func checkShell(t *testing.T, root *cobra.Command, line string) {
	t.Helper()
	line, _, _ = strings.Cut(line, "#")
	words := strings.Fields(strings.TrimPrefix(line, "sudo "))
	switch words[0] {
	case "make":
		if !strings.Contains(document(t, "Makefile"), "\n"+words[1]+":") {
			t.Errorf("%s: no such target", line)
		}
	case "./vmrun":
		c, args, err := root.Find(words[1:])
		if err == nil {
			err = c.ParseFlags(args)
		}
		if err == nil && strings.Contains(c.Use, "FILE") {
			document(t, c.Flags().Arg(0))
		}
		if err != nil || c == root {
			t.Errorf("%s: no such command: %v", line, err)
		}
	default:
		t.Errorf("%s: neither make nor vmrun", line)
	}
}

// TestDocumentedExitCodes holds that the README's table has the exit codes that
// run has, and no others.
func TestDocumentedExitCodes(t *testing.T) {
	want := []string{"0", "n"}
	file, err := parser.ParseFile(token.NewFileSet(), "exit.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok && strings.HasPrefix(spec.Names[0].Name, "exit") {
			code := spec.Values[0].(*ast.BasicLit).Value
			if code == strconv.Itoa(exitSignal) {
				code += "+n"
			}
			want = append(want, code)
		}
		return true
	})
	told := table(t, sections(document(t, "README.md"), "###")["Exit codes of run"], "code")
	if diff := cmp.Diff(told, table(t, sections(document(t, "docs/exit-codes.md"), "##")["run"], "code")); diff != "" {
		t.Errorf("exit codes (-README +docs/exit-codes.md):\n%s", diff)
	}
	got := column(told, 0)
	slices.Sort(want)
	if diff := cmp.Diff(want, slices.Sorted(slices.Values(got))); diff != "" {
		t.Errorf("exit codes (-exit.go +README):\n%s", diff)
	}
}

// TestDocumentedRequirements holds that the README's requirements name the programs
// and features that doctor can call missing.
func TestDocumentedRequirements(t *testing.T) {
	required := sections(document(t, "README.md"), "##")["Requirements"]
	for _, feature := range slices.Sorted(maps.Keys(featureHints)) {
		if !strings.Contains(required, feature) {
			t.Errorf("the requirements don't name %s", feature)
		}
	}
}

var link = regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)

// TestDocumentLinks holds that what a document links to is there.
func TestDocumentLinks(t *testing.T) {
	for _, file := range documents {
		for _, m := range link.FindAllStringSubmatch(document(t, file), -1) {
			document(t, filepath.Join(filepath.Dir(file), m[1]))
		}
	}
}
