package vm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vmrun/vmrun/profiles"
)

// disks are the nodes of realFixture's: one thrown away, one kept.
var diskNodes = []string{"disk0", "disk1"}

// hotNodes are those of the same disks where they were attached.
var hotNodes = []string{"disk0-0", "disk1-0"}

func launchReal(t *testing.T, h Host, plan *Plan, o Options) *Instance {
	t.Helper()
	i, err := Launch(t.Context(), plan, h, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { i.Close() })
	return i
}

// scribble has the machine write a byte all over the first 4 KiB of its disks.
func scribble(t *testing.T, i *Instance, pattern byte) {
	t.Helper()
	scribbleOn(t, i, diskNodes, pattern)
}

func scribbleOn(t *testing.T, i *Instance, nodes []string, pattern byte) {
	t.Helper()
	for _, node := range nodes {
		if out := qemuIO(t, i, node, fmt.Sprintf("write -P %d 0 4k", pattern)); !strings.Contains(out, "wrote 4096/4096") {
			t.Fatalf("write to %s: %s", node, out)
		}
	}
}

func checkScribble(t *testing.T, i *Instance, pattern byte) {
	t.Helper()
	checkScribbleOn(t, i, diskNodes, pattern)
}

func checkScribbleOn(t *testing.T, i *Instance, nodes []string, pattern byte) {
	t.Helper()
	for _, node := range nodes {
		out := qemuIO(t, i, node, fmt.Sprintf("read -P %d 0 4k", pattern))
		if strings.Contains(out, "failed") || !strings.Contains(out, "read 4096/4096") {
			t.Errorf("%s does not hold %d: %s", node, pattern, out)
		}
	}
}

// qemuIO runs a command of qemu-io on a disk. Its output, which ends with a line of
// statistics, comes by way of QEMU's log.
func qemuIO(t *testing.T, i *Instance, node, command string) string {
	t.Helper()
	var blocks []struct {
		QDev     string
		Inserted struct {
			Node string `json:"node-name"`
		}
	}
	if err := i.QMP().Run(t.Context(), "query-block", nil, &blocks); err != nil {
		t.Fatal(err)
	}
	device := ""
	for _, b := range blocks {
		if b.Inserted.Node == node {
			device = b.QDev
		}
	}
	mark := i.qemuLog.mark()
	var out string
	args := map[string]string{"command-line": fmt.Sprintf(`qemu-io -d %s "%s"`, device, command)}
	if err := i.QMP().Run(t.Context(), "human-monitor-command", args, &out); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(out, "ops;") && time.Now().Before(deadline); runtime.Gosched() {
		out = i.qemuLog.tail(mark)
	}
	return out
}

func realPlan(t *testing.T, h Host, p profiles.Profile) *Plan {
	t.Helper()
	plan, err := NewPlan(&p, h)
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

func runState(t *testing.T, i *Instance) string {
	t.Helper()
	var s struct{ Status string }
	if err := i.QMP().Run(t.Context(), "query-status", nil, &s); err != nil {
		t.Fatal(err)
	}
	return s.Status
}

// A machine goes on from its snapshot with the disks that it had then, as often
// as one likes, and the images below overlays are never written.
func TestSnapshot(t *testing.T) {
	h, p := realFixture(t)
	plan := realPlan(t, h, p)
	i := launchReal(t, h, plan, Options{})
	scribble(t, i, 1)
	s, err := i.Save(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	if got := runState(t, i); got != "running" {
		t.Errorf("after the snapshot the machine is %s", got)
	}
	if s.Size < 64<<10 || s.Paused {
		t.Errorf("snapshot %+v", s)
	}
	scribble(t, i, 2)
	if _, err := i.Save(t.Context(), "one"); err == nil || !strings.Contains(err.Error(), "there is one already") {
		t.Errorf("a second one of the name: %v", err)
	}
	if err := i.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		restored := restore(t, h, p.Name, "one")
		checkScribble(t, restored, 1)
		scribble(t, restored, 3)
		if got := runState(t, restored); got != "running" {
			t.Errorf("the restored machine is %s", got)
		}
		if err := restored.Close(); err != nil {
			t.Error(err)
		}
	}
	base, err := os.ReadFile(p.Disks[0].Path)
	if err != nil || !bytes.Equal(base, make([]byte, len(base))) {
		t.Errorf("the image below the overlay was written, %v", err)
	}
	checkList(t, h, p.Name)
}

func restore(t *testing.T, h Host, vm, name string) *Instance {
	t.Helper()
	s, err := LoadSnapshot(h, vm, name)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := s.RestorePlan(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	return launchReal(t, h, plan, Options{})
}

// checkList goes on with a machine that has the one snapshot "one".
func checkList(t *testing.T, h Host, vm string) {
	t.Helper()
	all, err := Snapshots(h, vm)
	if err != nil || len(all) != 1 || all[0].Name != "one" {
		t.Fatalf("snapshots %v, %v", all, err)
	}
	if err := all[0].Remove(); err != nil {
		t.Error(err)
	}
	if all, err := Snapshots(h, vm); err != nil || len(all) != 0 {
		t.Errorf("after the removal: %v, %v", all, err)
	}
	if _, err := LoadSnapshot(h, vm, "one"); !errors.As(err, new(*SnapshotError)) {
		t.Errorf("load what was removed: %v", err)
	}
}

// Memory is restored to the byte, and is saved without the pages that are zero.
func TestSnapshotMemory(t *testing.T) {
	h, p := realFixture(t)
	i := launchReal(t, h, realPlan(t, h, p), Options{})
	const written = 1 << 10 // bytes, by the firmware
	for deadline := time.Now().Add(30 * time.Second); bytes.Count(memory(t, i), []byte{0}) > int(p.Machine.Memory)-written; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("the firmware writes nothing")
		}
	}
	if err := i.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	was := memory(t, i)
	s, err := i.Save(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	if s.Size > int64(p.Machine.Memory)/4 {
		t.Errorf("the snapshot takes %d bytes", s.Size)
	}
	if err := i.Close(); err != nil {
		t.Fatal(err)
	}
	if is := memory(t, restore(t, h, p.Name, "one")); !bytes.Equal(was, is) {
		t.Error("the restored memory is another")
	}
}

// memory is all of the guest's.
func memory(t *testing.T, i *Instance) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "memory")
	args := map[string]any{"val": 0, "size": i.plan.Memory, "filename": file}
	if err := i.QMP().Run(t.Context(), "pmemsave", args, nil); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(file)
	if err = errors.Join(err, os.Remove(file)); err != nil {
		t.Fatal(err)
	}
	return content
}

// A paused machine is paused again.
func TestSnapshotPaused(t *testing.T) {
	h, p := realFixture(t)
	i := launchReal(t, h, realPlan(t, h, p), Options{Paused: true})
	if _, err := i.Save(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	if err := i.Close(); err != nil {
		t.Fatal(err)
	}
	if got := runState(t, restore(t, h, p.Name, "one")); got == "running" {
		t.Errorf("the restored machine is %s", got)
	}
}
