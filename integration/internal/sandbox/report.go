package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// reportVariable names the folder that what Report tells is kept in.
const reportVariable = "VMRUN_TEST_REPORT"

// reportMark begins a line of a test's output that Report has made: a file's name
// follows, and what it tells.
const reportMark = "report: "

// Report adds a line to a file of the folder that VMRUN_TEST_REPORT names; without
// it, to the test's log. A sandbox may have a file system of its own, so that a test
// in one tells it to the process that the user started, by its output.
func Report(t *testing.T, file, line string) {
	t.Helper()
	switch {
	case os.Getenv(reportVariable) == "":
		t.Log(line)
	case os.Getenv(roleVariable) != "":
		fmt.Printf("%s%s %s\n", reportMark, file, line)
	default:
		if err := kept.add(file, line); err != nil {
			t.Errorf("write report: %v", err)
		}
	}
}

// reported tells what a line of a test's output has for a report.
func reported(line string) (file, text string, ok bool) {
	line, ok = strings.CutPrefix(strings.TrimLeft(line, " "), reportMark)
	if !ok {
		return "", "", false
	}
	return strings.Cut(line, " ")
}

// kept are the reports of this process.
var kept reports

type reports struct {
	mu    sync.Mutex
	files map[string]*os.File // until the process ends
}

// add writes a line to a file, which is made anew by the first one.
func (r *reports) add(file, line string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.files == nil {
		r.files = map[string]*os.File{}
	}
	if r.files[file] == nil {
		path := filepath.Join(os.Getenv(reportVariable), file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		r.files[file] = f
	}
	_, err := fmt.Fprintln(r.files[file], line)
	return err
}
