package netsetup

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestSweepAside: what lives is left alone, also where it gives no answer, and
// what is dead is undone.
func TestSweepAside(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	uplinks(t)
	withEach(t, func(t *testing.T, h Host) {
		hostState(t)
		before := hostState(t)
		ctx := context.Background()
		m := startMember(t, h, "nat")
		keeper := lan(t, h).KeeperID
		inUse := hostState(t)
		leaves := func(what string) {
			t.Helper()
			if lines, err := SweepAside(ctx, h); err != nil || lines != nil {
				t.Errorf("%s: swept %v, %v", what, lines, err)
			}
			if diff := cmp.Diff(inUse, hostState(t)); diff != "" {
				t.Errorf("%s:\n%s", what, diff)
			}
		}
		leaves("in use")
		if err := unix.Kill(keeper, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		leaves("its keeper was stopped")
		if err := unix.Kill(m.Process.Pid, unix.SIGSTOP); err != nil { // nobody starts another one
			t.Fatal(err)
		}
		kill(t, keeper)
		inUse = hostState(t) // without what goes with a keeper
		leaves("a VM without keeper is on it")
		m.Process.Kill()
		m.Wait()
		if lines, err := SweepAside(ctx, h); err != nil || len(lines) == 0 {
			t.Errorf("swept %v, %v", lines, err)
		}
		if diff := cmp.Diff(before, hostState(t)); diff != "" {
			t.Errorf("left behind:\n%s\n%s", diff, keeperLogs(h))
		}
	})
}
