package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/control"
)

const logsHelp = `Print what a VM has written to its console, also of one that has ended, until its
name runs again. The last four megabytes are kept at least, and eight at most.

--since takes a duration before now, as 10m, or a time, as 2026-01-02T15:04:05Z; what
was written is known by the second.`

// logOptions are the flags of logs.
type logOptions struct {
	follow bool
	since  string
	tail   int // -1: all
	qemu   bool
}

func newLogsCommand() *cobra.Command {
	var o logOptions
	cmd := &cobra.Command{
		Use:   "logs VM",
		Short: "Print the console log of a VM",
		Long:  logsHelp,
		Args:  usageArgs(singleVM),
		RunE: func(cmd *cobra.Command, args []string) error {
			return printLogs(cmd.Context(), cmd.OutOrStdout(), args[0], o)
		},
		ValidArgsFunction: completeOneVM(anyVM),
	}
	f := cmd.Flags()
	f.BoolVarP(&o.follow, "follow", "f", false, "go on with what is written until the VM has ended")
	f.StringVar(&o.since, "since", "", "only what was written since this time")
	f.IntVar(&o.tail, "tail", -1, "only the last so many lines (default: all)")
	f.BoolVar(&o.qemu, "qemu", false, "QEMU's own log")
	return cmd
}

func printLogs(ctx context.Context, w io.Writer, name string, o logOptions) error {
	since, err := parseSince(o.since, time.Now())
	if err != nil {
		return usageError{"vmrun logs", err}
	}
	if o.tail < -1 {
		return usageError{"vmrun logs", fmt.Errorf("--tail %d: want a number of lines", o.tail)}
	}
	m, err := loggedVM(ctx, name)
	if err != nil {
		return err
	}
	file := vm.ConsoleLog
	if o.qemu {
		file = vm.QEMULog
	}
	var changes *folderWatch
	if o.follow && m.Alive() {
		// Before the log is read, so that nothing is missed.
		if changes, err = watchFolder(m.Dir); err != nil {
			return err
		}
		defer changes.Close()
	}
	log, err := m.OpenLog(file, since)
	if err != nil {
		return err
	}
	defer log.Close()
	if o.tail >= 0 {
		err = copyTail(w, log, o.tail)
	} else {
		_, err = io.Copy(w, log)
	}
	if err != nil || changes == nil {
		return err
	}
	return followLog(ctx, w, m, log, changes)
}

// loggedVM finds a VM, or what is left of one that has ended.
func loggedVM(ctx context.Context, name string) (vm.Machine, error) {
	m, err := oneVM(ctx, name)
	if _, unknown := errors.AsType[*vm.UnknownError](err); !unknown {
		return m, err
	}
	host, hostErr := locateHost()
	if hostErr != nil {
		return m, hostErr
	}
	if left, ok := vm.Left(host, name); ok {
		return left, nil
	}
	return m, err
}

// parseSince parses --since: a time, or a duration before now.
func parseSince(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("--since %q: want a duration as 10m, or a time as 2026-01-02T15:04:05Z", text)
}

// copyTail copies the last so many lines.
func copyTail(w io.Writer, r io.Reader, lines int) error {
	last := make([][]byte, 0, min(lines, 1<<10)+1)
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadBytes('\n')
		if len(line) > 0 {
			if last = append(last, line); len(last) > lines {
				last = last[1:]
			}
		}
		if err == io.EOF {
			_, err = w.Write(bytes.Join(last, nil))
			return err
		}
		if err != nil {
			return err
		}
	}
}

// followLog copies what is written to a log until its VM has ended.
func followLog(ctx context.Context, w io.Writer, m vm.Machine, log *vm.LogReader, changes *folderWatch) error {
	ended, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		control.Wait(ended, m) // however it ends, it is the end
		cancel()
		changes.Close()
	}()
	for {
		waitErr := changes.wait()
		for again := true; again; again = log.Follow() {
			if _, err := io.Copy(w, log); err != nil {
				return err
			}
		}
		if waitErr != nil {
			if ended.Err() != nil && ctx.Err() == nil {
				return nil
			}
			return waitErr
		}
	}
}

// folderWatch tells of changes in a folder (inotify(7)).
type folderWatch struct{ file *os.File }

func watchFolder(dir string) (*folderWatch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	file := os.NewFile(uintptr(fd), filepath.Base(dir))
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		return nil, errors.Join(fmt.Errorf("watch %s: %w", dir, err), file.Close())
	}
	return &folderWatch{file}, nil
}

// wait returns at the next change, or several.
func (f *folderWatch) wait() error {
	buf := make([]byte, 64*(unsafe.Sizeof(unix.InotifyEvent{})+unix.NAME_MAX+1))
	_, err := f.file.Read(buf)
	return err
}

// Close ends the watch, and a wait.
func (f *folderWatch) Close() error { return f.file.Close() }
