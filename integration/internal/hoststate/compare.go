package hoststate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// Diff tells what differs between two snapshots: whole lines under their
// section's name, "-" those that are gone, "+" those that are new; "" where
// nothing does.
func Diff(before, after string) string {
	if before == after {
		return ""
	}
	was, is := lines(before), lines(after)
	var diff strings.Builder
	for _, change := range []struct {
		sign string
		of   []string
		not  []string
	}{{"-", was, is}, {"+", is, was}} {
		for _, line := range missing(change.of, change.not) {
			fmt.Fprintf(&diff, "%s %s\n", change.sign, line)
		}
	}
	if diff.Len() == 0 {
		return "the same lines in another order:\n" + cmp.Diff(was, is)
	}
	return diff.String()
}

// lines puts its section before each line of a snapshot.
func lines(snapshot string) []string {
	var all []string
	section := ""
	for line := range strings.Lines(snapshot) {
		line = strings.TrimSuffix(line, "\n")
		if name, ok := strings.CutPrefix(line, "== "); ok {
			section = name
			continue
		}
		all = append(all, section+": "+line)
	}
	return all
}

// missing are the lines of one list that another lacks, or has less often.
func missing(of, not []string) []string {
	not = slices.Clone(not)
	return slices.DeleteFunc(slices.Clone(of), func(line string) bool {
		i := slices.Index(not, line)
		if i >= 0 {
			not = slices.Delete(not, i, i+1)
		}
		return i >= 0
	})
}

// WaitProcesses waits until no processes run but those of a snapshot's command
// list, as Processes gives it. It waits on the processes themselves.
func WaitProcesses(ctx context.Context, want []string) error {
	for {
		late := ctx.Err() // before the look that tells whether all are gone
		strangers, err := Others(want)
		if err != nil || len(strangers) == 0 {
			return err
		}
		if late != nil {
			return fmt.Errorf("wait for end of %d (%s): %w", strangers[0].PID, strangers[0].Command, late)
		}
		// Often enough to heed the context.
		if _, err := ended(strangers[0].PID, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// Others are the running processes beyond those that are wanted, by their
// commands.
func Others(want []string) ([]Process, error) {
	running, err := Running()
	if err != nil {
		return nil, err
	}
	want = slices.Clone(want)
	return slices.DeleteFunc(running, func(p Process) bool {
		i := slices.Index(want, p.Command)
		if i >= 0 {
			want = slices.Delete(want, i, i+1)
		}
		return i >= 0
	}), nil
}

// ended waits at most a time until a process, a child or not, has ended with all
// its threads, and tells whether it has.
func ended(pid int, limit time.Duration) (bool, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(limit.Milliseconds()))
	if err != nil && !errors.Is(err, unix.EINTR) {
		return false, fmt.Errorf("wait for process %d: %w", pid, err)
	}
	return n > 0, nil
}
