package integration

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/hoststate"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
)

// A TAP is QEMU's and its supervisor's, who die together: a copy in another process
// would keep the link alive. And QEMU has nothing that its command line does not name:
// a keeper's connection in it would keep a dead supervisor's membership alive.
func TestWhoHasWhichFiles(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables")...)
		h := newHost(t)
		before := h.state(t)
		vm := h.run(t, writeProfile(t, t.TempDir(), "web", natLAN+micro(t, serveScript)))
		vm.expect(t, `serving\n`)

		owners := map[string]int{}
		running, err := hoststate.Others(before.processes)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range running {
			for fd, target := range openFiles(t, p.PID) {
				if target == "/dev/net/tun" {
					owners[ownerName(p.Command)]++
				}
				if strings.Contains(p.Command, qemuWord) && !expected(p.Command, fd, target) {
					t.Errorf("QEMU has %s open as %s, which its command line does not name:\n%s", target, fd, p.Command)
				}
			}
		}
		if want := map[string]int{qemuWord: 1, "vmrun run": 1}; !maps.Equal(owners, want) {
			t.Errorf("who has a TAP open, and how often: %v; want %v", owners, want)
		}
		vm.say(t, "")
		vm.ends(t, 0)
		h.restored(t, before)
	})
}

// ownerName is a process's program, and of vmrun's processes the verb as well.
func ownerName(command string) string {
	words := strings.Fields(command)
	name := filepath.Base(words[0])
	if name == "vmrun" {
		name += " " + words[1]
	}
	return name
}

// openFiles are a process's files by descriptor.
func openFiles(t *testing.T, pid int) map[string]string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, entry := range entries {
		target, err := os.Readlink(filepath.Join(dir, entry.Name()))
		if err == nil {
			files[entry.Name()] = target
		}
	}
	return files
}

// expected tells whether QEMU's command line names a descriptor, or QEMU opens
// such a file by itself: its standard files, its event loops, its signals.
func expected(command, fd, target string) bool {
	return slices.Contains([]string{"0", "1", "2"}, fd) ||
		strings.HasPrefix(target, "anon_inode:") || strings.HasPrefix(target, "/memfd:") || target == "/dev/vhost-net" ||
		slices.ContainsFunc(strings.FieldsFunc(command, func(r rune) bool { return strings.ContainsRune(" ,=:/", r) }),
			func(word string) bool { return word == fd })
}
