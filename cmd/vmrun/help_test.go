package main

import (
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWritePage(t *testing.T) {
	const page = "# The `page`\n\nSome [link](a.md#b) and `code [x]`, which\ngo on.\n\n" +
		"- an item that is longer than one line of a terminal has characters, and so goes on\n  and on\n- another\n\n" +
		"| key | type | default | meaning |\n|---|---|---|---|\n| `a` | `x\\|y` | | what it is |\n\n```sh\nkeep  this | `as` it is\n\n```\n"
	const want = `THE PAGE

Some link and code [x], which go on.

- an item that is longer than one line of a terminal has characters, and so goes
  on and on
- another

  a (type: x|y)
      what it is

    keep  this | ` + "`as`" + ` it is

`
	var got strings.Builder
	writePage(&got, page)
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestTopics holds that a page loses none of its words on the way to the
// terminal, and that help names the topics.
func TestTopics(t *testing.T) {
	help := newHelpCommand().Short
	for _, topic := range topics {
		if !strings.Contains(help, topic.name) {
			t.Errorf("help does not name the topic %s", topic.name)
		}
		var out strings.Builder
		writePage(&out, topic.page)
		shown := strings.ToLower(out.String())
		page := regexp.MustCompile("\\]\\([^)]*\\)|(?m)^```.*$|[`|\\\\()\\[\\]#]").ReplaceAllString(topic.page, " ")
		for word := range strings.FieldsSeq(strings.ToLower(page)) {
			if strings.Trim(word, "-") != "" && word != meaningColumn && !strings.Contains(shown, word) {
				t.Errorf("help %s has lost the word %q", topic.name, word)
			}
		}
	}
}
