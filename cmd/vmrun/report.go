package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
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

func newReport(file string, started time.Time, end outcome) report {
	r := report{VM: end.vm, Profile: file, Code: end.code, By: end.by, Reason: end.reason,
		Started: started.UTC(), Ended: time.Now().UTC()}
	if end.cause != nil {
		r.Error = end.cause.Error()
	}
	return r
}

// writeReport writes the report to file. A regular file appears in one go, so
// that nobody reads half of it; a pipe or a device is written to.
func writeReport(file string, r report) error {
	write := replaceFile
	if fi, err := os.Stat(file); err == nil && !fi.Mode().IsRegular() {
		write = overwriteFile
	}
	if err := write(file, r); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

func replaceFile(file string, r report) error {
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // nothing to remove once it is renamed
	if err := errors.Join(printJSON(f, r), f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

func overwriteFile(file string, r report) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(printJSON(f, r), f.Close())
}
