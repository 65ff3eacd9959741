package main

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

var update = flag.Bool("update", false, "write the generated documents anew")

// TestDocsGenerated holds that docs/cli.md and docs/man are what the commands
// say of themselves. With -update it writes them.
func TestDocsGenerated(t *testing.T) {
	want := generatedDocs(t)
	if *update {
		writeDocs(t, want)
	}
	got := map[string]string{}
	for _, pattern := range []string{"cli.md", "man/*"} {
		files, err := filepath.Glob(filepath.Join("..", "..", "docs", pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			name := strings.TrimPrefix(filepath.ToSlash(file), "../../")
			got[name] = document(t, name)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("make docs writes them anew (-commands +docs):\n%s", diff)
	}
}

// writeDocs makes the generated documents these and no others.
func writeDocs(t *testing.T, docs map[string]string) {
	t.Helper()
	man := filepath.Join("..", "..", "docs", "man")
	if err := os.RemoveAll(man); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(man, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(docs)) {
		if err := os.WriteFile(filepath.Join("..", "..", name), []byte(docs[name]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// generatedDocs are the documents by their path in the repository.
func generatedDocs(t *testing.T) map[string]string {
	t.Helper()
	docs := map[string]string{}
	var page strings.Builder
	page.WriteString("# Commands\n\nEvery command with its flags, as `vmrun help COMMAND` and the man pages have it. This page is generated: `make docs`.\n")
	for _, c := range visible(documentedRoot()) {
		name := strings.ReplaceAll(c.CommandPath(), " ", "-")
		man := "docs/man/" + name + ".1"
		if docs[man] != "" {
			t.Errorf("two commands are called %s", c.CommandPath())
		}
		docs[man] = manPage(t, c)
		writeMarkdown(&page, c)
	}
	docs["docs/cli.md"] = page.String()
	return docs
}

// documentedRoot has what cobra adds at its first run as well.
func documentedRoot() *cobra.Command {
	root := newRootCommand(new(styleFlags))
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd("run")
	return root
}

// visible are a command and those below it that help lists.
func visible(c *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{c}
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() || sub.Name() == "help" {
			all = append(all, visible(sub)...)
		}
	}
	return all
}

// manDate is where cobra puts the date, without which it takes today's.
var manDate = regexp.MustCompile(`(?m)^(\.TH "[^"]*" "1") "[^"]*"`)

func manPage(t *testing.T, c *cobra.Command) string {
	t.Helper()
	var b bytes.Buffer
	c.DisableAutoGenTag = true
	defer func(long string) { c.Long = long }(c.Long)
	c.Long = withColumns(c.Long)
	if err := doc.GenMan(c, &doc.GenManHeader{Section: "1", Source: "vmrun", Manual: "vmrun"}, &b); err != nil {
		t.Fatal(err)
	}
	page := manDate.ReplaceAllString(b.String(), `$1 ""`)
	if page == b.String() {
		t.Fatalf("the man page of %s has no date to take out", c.CommandPath())
	}
	return page
}

// withColumns marks a text's tables, whose columns are set by spaces, as what is
// not to be filled. The text is Markdown to cobra.
func withColumns(text string) string {
	paragraphs := strings.Split(text, "\n\n")
	for i, p := range paragraphs {
		if strings.Contains(p, "   ") {
			paragraphs[i] = "    " + strings.ReplaceAll(p, "\n", "\n    ")
		}
	}
	return strings.Join(paragraphs, "\n\n")
}

// writeMarkdown writes a command's section of docs/cli.md. What it says at
// length stays as a terminal shows it: its line breaks and columns mean something.
func writeMarkdown(w *strings.Builder, c *cobra.Command) {
	c.InitDefaultHelpFlag()
	fmt.Fprintf(w, "\n## %s\n\n%s.\n", c.CommandPath(), c.Short)
	if c.Runnable() && c.HasParent() {
		fmt.Fprintf(w, "\n```text\n%s\n```\n", c.UseLine())
	}
	if c.Long != "" {
		fmt.Fprintf(w, "\n```text\n%s\n```\n", strings.TrimSpace(c.Long))
	}
	if flags := c.NonInheritedFlags(); flags.HasAvailableFlags() {
		fmt.Fprintf(w, "\n```text\n%s```\n", flags.FlagUsages())
	}
	if flags := c.InheritedFlags(); flags.HasAvailableFlags() {
		fmt.Fprintf(w, "\nAlso:\n\n```text\n%s```\n", flags.FlagUsages())
	}
	if c.HasAvailableSubCommands() {
		w.WriteString("\n")
	}
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() {
			path := sub.CommandPath()
			fmt.Fprintf(w, "- [`%s`](#%s): %s\n", path, strings.ReplaceAll(path, " ", "-"), sub.Short)
		}
	}
}
