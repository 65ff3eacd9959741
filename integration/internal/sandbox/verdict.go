package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
)

// verdict passes a test's verbose output on, line by line as it comes, and
// reads the outcome from it.
type verdict struct {
	out                     io.Writer
	name                    string
	partial                 []byte
	passed, failed, skipped bool
	report                  func(file, line string) error // nil: what is for a report is passed on as well
	err                     error                         // of report
}

// Write implements io.Writer.
func (v *verdict) Write(p []byte) (int, error) {
	v.partial = append(v.partial, p...)
	for {
		line, rest, ok := bytes.Cut(v.partial, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		v.line(strings.TrimRight(string(line), "\r"))
		v.partial = rest
	}
}

func (v *verdict) flush() {
	if len(v.partial) > 0 {
		v.line(string(v.partial))
		v.partial = nil
	}
}

// poweredOff is a kernel's last word.
var poweredOff = regexp.MustCompile(`^(\[ *[0-9.]+\] )?reboot: (System halted|Power down)$`)

// line drops what the outer test prints itself.
func (v *verdict) line(line string) {
	file, text, isReport := reported(line)
	outcome, of, _ := strings.Cut(strings.TrimLeft(line, " "), ": "+v.name+" ")
	switch {
	case isReport && v.report != nil:
		v.err = errors.Join(v.err, v.report(file, text))
	case of != "" && outcome == "--- PASS":
		v.passed = true
	case of != "" && outcome == "--- SKIP":
		v.skipped = true
	case of != "" && outcome == "--- FAIL":
		v.failed = true
	case line == "PASS", line == "FAIL", strings.HasPrefix(line, "=== "), strings.HasPrefix(line, exitMark), poweredOff.MatchString(line):
	default:
		fmt.Fprintln(v.out, line)
	}
}
