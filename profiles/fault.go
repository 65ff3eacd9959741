package profiles

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Fault is one thing that is wrong with a profile, and where.
type Fault struct {
	File string // as the caller wrote it, or as the extending file leads to it
	Line int    // from 1; where a key is missing, its table's; 0: File is no file but a setting
	Key  string // dotted, with indexes from 0: "nics[0].mac"; "": the file as a whole
	Text string // what is wrong, and where possible what to write instead
}

// Error gives the fault on one line: "web.toml:7: machine.cpus: …".
func (f Fault) Error() string {
	text := f.Text
	if f.Key != "" {
		text = f.Key + ": " + text
	}
	if f.Line == 0 {
		return printable(f.File + ": " + text)
	}
	return printable(fmt.Sprintf("%s:%d: %s", f.File, f.Line, text))
}

// Faults is everything that is wrong with a profile, ordered by file and line.
// Load and Parse return it, never empty, as their error; errors.As finds it.
type Faults []Fault

// Error gives one fault per line.
func (fs Faults) Error() string {
	lines := make([]string, len(fs))
	for i, f := range fs {
		lines[i] = f.Error()
	}
	return strings.Join(lines, "\n")
}

// err orders the faults and drops repetitions: a fault of a base that is
// extended twice is still one fault. It is nil where there are none.
func (fs Faults) err() error {
	if len(fs) == 0 {
		return nil
	}
	slices.SortStableFunc(fs, func(a, b Fault) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line))
	})
	return slices.Compact(fs)
}

// maxQuoted is how many bytes of a value a message repeats.
const maxQuoted = 60

// quote makes a value fit for a message: in quotes, on one line, and short.
func quote(s string) string {
	if len(s) <= maxQuoted {
		return strconv.Quote(s)
	}
	end := maxQuoted
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return fmt.Sprintf("%q… (%d bytes)", s[:end], len(s))
}

// printable replaces what would break a line or a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}

// guess says which of the known words was meant, or else which there are.
func guess(word string, known []string) string {
	if best := nearest(word, known); best != "" {
		return fmt.Sprintf("did you mean %q?", best)
	}
	if len(known) == 1 {
		return fmt.Sprintf("only %q is known", known[0])
	}
	return "known are " + strings.Join(known, ", ")
}

// Nearest is the known word that was probably meant by one that is not known; ""
// where none is like it.
func Nearest(word string, known []string) string { return nearest(word, known) }

// nearest is the known word that differs least from word, if in no more than
// a third of it.
func nearest(word string, known []string) string {
	best, least := "", max(1, len(word)/3)+1
	for _, k := range known {
		if d := distance(strings.ToLower(word), k, least); d < least {
			best, least = k, d
		}
	}
	return best
}

// distance counts the insertions, deletions, replacements and swaps of
// neighbours that turn a into b. Words whose lengths differ by limit or more
// are not compared at all.
func distance(a, b string, limit int) int {
	if max(len(a)-len(b), len(b)-len(a)) >= limit {
		return limit
	}
	var before []int
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		next := make([]int, len(b)+1)
		next[0] = i + 1
		for j := range len(b) {
			replace := row[j]
			if a[i] != b[j] {
				replace++
			}
			next[j+1] = min(replace, row[j+1]+1, next[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				next[j+1] = min(next[j+1], before[j-1]+1)
			}
		}
		before, row = row, next
	}
	return row[len(b)]
}
