package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmrun/vmrun/docs"
)

// topics are what help explains besides commands, each by a page of docs.
var topics = []struct{ name, short, page string }{
	{"profile", "Every key of a profile", docs.Profile},
	{"networks", "The modes of networks, and who reaches whom", docs.Networks},
	{"exit-codes", "What the exit codes mean", docs.ExitCodes},
}

// newTopicCommands are what makes the topics part of help. They have nothing to
// run, so that cobra lists them apart.
func newTopicCommands() []*cobra.Command {
	var all []*cobra.Command
	for _, topic := range topics {
		c := &cobra.Command{Use: topic.name, Short: topic.short}
		c.SetHelpFunc(func(c *cobra.Command, _ []string) {
			writePage(c.OutOrStdout(), topic.page)
		})
		all = append(all, c)
	}
	return all
}

// newHelpCommand replaces cobra's, which ends with 0 whatever it is asked about,
// and completes no topics.
func newHelpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND | TOPIC]",
		Short: "Explain a command, or a topic: profile, networks, exit-codes",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, rest, err := cmd.Root().Find(args)
			if err != nil {
				return usageError{cmd.CommandPath(), err}
			}
			if len(rest) > 0 {
				return unknownCommand(c, rest)
			}
			c.InitDefaultHelpFlag()
			return c.Help()
		},
		ValidArgsFunction: completeHelp,
	}
}

func completeHelp(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	c, rest, err := cmd.Root().Find(args)
	if err != nil || len(rest) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []cobra.Completion
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() || sub.IsAdditionalHelpTopicCommand() {
			names = append(names, cobra.CompletionWithDesc(sub.Name(), sub.Short))
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// pageWidth is the length of a page's lines on a terminal, in characters.
const pageWidth = 80

// writePage writes a page of docs for a terminal. It knows of Markdown what those
// have: headings, paragraphs, lists, tables, fenced blocks, links and code.
func writePage(w io.Writer, page string) {
	p := &pageWriter{w: w}
	for line := range strings.Lines(page) {
		p.line(strings.TrimRight(line, "\n"))
	}
	p.flush()
}

// pageWriter is where in a page writePage is.
type pageWriter struct {
	w         io.Writer
	paragraph []string // lines of a paragraph, or of an item of a list, so far
	head      []string // of the table; nil: it is none
	fenced    bool
}

func (p *pageWriter) line(line string) {
	switch {
	case strings.HasPrefix(line, "```"):
		p.flush()
		p.fenced = !p.fenced
	case p.fenced:
		fmt.Fprintln(p.w, strings.TrimRight("    "+line, " "))
	case strings.HasPrefix(line, "|"):
		p.row(cells(line))
	case strings.HasPrefix(line, "#"):
		p.flush()
		fmt.Fprintln(p.w, strings.ToUpper(plain(strings.TrimLeft(line, "# "))))
	case line == "":
		p.flush()
		p.head = nil
		fmt.Fprintln(p.w)
	case strings.HasPrefix(line, "- "):
		p.flush()
		p.paragraph = []string{line}
	default:
		p.paragraph = append(p.paragraph, strings.TrimSpace(line))
	}
}

// flush writes the paragraph that is at its end.
func (p *pageWriter) flush() {
	text := plain(strings.Join(p.paragraph, " "))
	p.paragraph = nil
	if item, ok := strings.CutPrefix(text, "- "); ok {
		writeWrapped(p.w, "- ", "  ", item)
	} else if text != "" {
		writeWrapped(p.w, "", "", text)
	}
}

// row writes a row of a table as an entry: what it is about, and below that the
// other columns.
func (p *pageWriter) row(row []string) {
	switch {
	case p.head == nil:
		p.head = row
		return
	case strings.HasPrefix(row[0], "---"):
		return
	}
	last := len(row) - 1
	if p.head[last] == meaningColumn {
		writeWrapped(p.w, "  ", "    ", row[0]+p.aside(row[:last]))
		writeWrapped(p.w, "      ", "      ", row[last])
		return
	}
	writeWrapped(p.w, "  ", "    ", row[0])
	for i, text := range row[1:] {
		if last > 1 {
			text = p.head[i+1] + ": " + text
		}
		writeWrapped(p.w, "      ", "        ", text)
	}
}

// meaningColumn heads the text of an entry whose other columns are an aside.
const meaningColumn = "meaning"

// aside is in brackets what a row says between its first and its last column.
func (p *pageWriter) aside(row []string) string {
	var parts []string
	for i := 1; i < len(row); i++ {
		if row[i] != "" {
			parts = append(parts, p.head[i]+": "+row[i])
		}
	}
	return " (" + strings.Join(parts, "; ") + ")"
}

// cells are those of a table's row.
func cells(line string) []string {
	const pipe = "\x00" // a | within a cell
	all := strings.Split(strings.Trim(strings.ReplaceAll(line, `\|`, pipe), "|"), "|")
	for i, c := range all {
		all[i] = plain(strings.ReplaceAll(strings.TrimSpace(c), pipe, "|"))
	}
	return all
}

// plain is a text without the marks of code and without where its links lead.
func plain(text string) string {
	var b strings.Builder
	for {
		before, rest, ok := strings.Cut(text, "](")
		open := strings.LastIndexByte(before, '[')
		if !ok || open < 0 {
			break
		}
		_, after, closed := strings.Cut(rest, ")")
		if !closed {
			break
		}
		b.WriteString(before[:open] + before[open+1:])
		text = after
	}
	b.WriteString(text)
	return strings.ReplaceAll(b.String(), "`", "")
}

// writeWrapped writes a text in lines of at most pageWidth, where its words allow.
func writeWrapped(w io.Writer, first, others, text string) {
	line, empty := first, true
	for _, word := range strings.Fields(text) {
		if !empty && len([]rune(line))+1+len([]rune(word)) > pageWidth {
			fmt.Fprintln(w, line)
			line, empty = others, true
		}
		if !empty {
			line += " "
		}
		line, empty = line+word, false
	}
	fmt.Fprintln(w, line)
}
