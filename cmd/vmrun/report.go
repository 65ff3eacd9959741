package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/vm/control"
)

// report is what --report writes.
type report struct {
	VM      string    `json:"vm,omitempty"`
	Profile string    `json:"profile"`
	Code    int       `json:"code"`
	By      string    `json:"by"`
	Reason  string    `json:"reason"`
	Error   string    `json:"error,omitempty"`
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended"`
}

// reporting is a run's part of its report, and what it says already.
type reporting struct {
	file    string // the profile, as the user named it
	started time.Time
	written control.Outcome // zero: nothing is
}

func (r reporting) newReport(end outcome) report {
	n := report{VM: end.vm, Profile: r.file, Code: end.code, By: end.by, Reason: end.reason,
		Started: r.started.UTC(), Ended: time.Now().UTC()}
	if end.cause != nil {
		n.Error = end.cause.Error()
	}
	return n
}

// report says why a boot failed, sees to the report that was asked for and returns
// the outcome as a command does.
func (r *runner) report(end outcome) error {
	if isFailedBoot(end) {
		r.tellFailure(end.vm, end.cause)
	}
	if err := r.saveReport(end); err != nil {
		r.style.printError(r.stderr, end.err())
		return exitError{max(end.code, exitFailed), err}
	}
	return end.err()
}

// reportFirst writes the report before anybody else can see the outcome. What goes
// wrong is told by report, which tries again. Who reads a pipe gets one, and may
// come late, so that this is left to report as well.
func (r *runner) reportFirst(end outcome) {
	if !isStream(r.options.report) {
		_ = r.saveReport(end)
	}
}

// saveReport writes the report that was asked for, unless it says this already.
func (r *runner) saveReport(end outcome) error {
	if r.options.report == "" || r.reporting.written == end.public() {
		return nil
	}
	var e *evidence
	if isFailedBoot(end) {
		e = r.evidence
	}
	err := writeReport(r.options.report, r.reporting.newReport(end), e)
	if err == nil {
		r.reporting.written = end.public()
	}
	return err
}

// isStream tells whether --report names a pipe or a device.
func isStream(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && !fi.Mode().IsRegular() && !fi.IsDir()
}

// isReportFolder tells whether --report names a folder: one that is there, or
// what ends in a slash.
func isReportFolder(path string) bool {
	fi, err := os.Stat(path)
	return strings.HasSuffix(path, "/") || err == nil && fi.IsDir()
}

// prepareReport makes the folder of --report, before anything else happens.
func prepareReport(path string) error {
	if !isReportFolder(path) {
		return nil
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return fmt.Errorf("make report's folder: %w", err)
	}
	if err := unix.Access(path, unix.W_OK); err != nil {
		return fmt.Errorf("write into %s: %w", path, err)
	}
	return nil
}

// writeReport writes the report to a file, or into a folder, with the evidence
// where the boot failed. A regular file appears in one go, so that nobody reads
// half of it; a pipe or a device is written to.
func writeReport(path string, r report, e *evidence) error {
	write := replaceFile
	var err error
	if isReportFolder(path) {
		if e != nil {
			err = e.write(path)
		}
		path = filepath.Join(path, reportFile)
	} else if isStream(path) {
		write = overwriteFile
	}
	if err := errors.Join(write(path, func(w io.Writer) error { return printJSON(w, r) }), err); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

func writeAll(content []byte) func(io.Writer) error {
	return func(w io.Writer) error { _, err := w.Write(content); return err }
}

// tellFailure says at once what is likely to have kept a VM from coming up.
func (r *runner) tellFailure(name string, told error) {
	e := r.evidence
	if r.options.quiet || e == nil || e.diagnosis == nil {
		return
	}
	folder := ""
	if isReportFolder(r.options.report) {
		folder = r.options.report
	}
	causes, console, rest := e.shown(told, folder)
	if r.style.json {
		r.log.Warn("boot failed", "vm", name, "likely", causes, "console", console, "more", rest)
		return
	}
	if len(causes) > 0 {
		fmt.Fprintf(r.stderr, "vmrun: %s: most likely:\n", name)
	}
	for _, cause := range causes {
		fmt.Fprintf(r.stderr, "  %s\n", cause)
	}
	if len(console) > 0 {
		fmt.Fprintf(r.stderr, "vmrun: %s: the last lines of its console:\n", name)
	}
	for _, line := range console {
		fmt.Fprintf(r.stderr, "  | %s\n", line)
	}
	fmt.Fprintf(r.stderr, "vmrun: %s: more is in %s\n", name, rest)
}

// oneLine makes a text fit for a line.
func oneLine(text string) string {
	runes := []rune(strings.ReplaceAll(text, "\n", "; "))
	if len(runes) > shownWidth {
		runes = append(runes[:shownWidth], '…')
	}
	return string(runes)
}

// replaceFile writes a file as a whole: readers see the old or the new one.
func replaceFile(file string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // nothing to remove once it is renamed
	if err := errors.Join(write(f), f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

func overwriteFile(file string, write func(io.Writer) error) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}
