package firewall

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestChildrenHoldTheLock: a process that changes rules keeps the network's
// lock, so that nobody takes a killed keeper's work for finished.
func TestChildrenHoldTheLock(t *testing.T) {
	dir := t.TempDir()
	seen := filepath.Join(dir, "seen")
	script := "#!/bin/sh\nreadlink /proc/self/fd/3 >>" + seen + "\n"
	for _, name := range []string{"iptables", "iptables-restore"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	lock, err := os.Create(filepath.Join(dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	h := NewHost(lock)
	if err := h.Add(Rules{Backend: IPTables}); err != nil {
		t.Fatal(err)
	}
	if err := h.delChain(IPTables, Jumped{Table: "filter", Name: "X"}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(seen)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.TrimSpace(line) != lock.Name() {
			t.Errorf("a child's descriptor 3 is %s", line)
		}
	}
	if n := strings.Count(string(text), "\n"); n < 4 {
		t.Errorf("%d children, want the restore and three of the removal", n)
	}
}
