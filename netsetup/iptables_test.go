package netsetup

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
	h := &host{lock: lock}
	if err := h.AddRules("iptables", nil); err != nil {
		t.Fatal(err)
	}
	if err := h.delChain("iptables", chain{Table: "filter", Name: "X"}); err != nil {
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

// TestDockerChain: rules go where Docker lets others decide, if packets come
// through there, and are removed by hand-work where others took a part away.
func TestDockerChain(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	h, err := newHost(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	iptables := func(args ...string) {
		t.Helper()
		if err := h.iptables("iptables", "", args...); err != nil {
			t.Fatal(err)
		}
	}
	docker := func(want bool) {
		t.Helper()
		if _, got, err := h.Backend(); err != nil || got != want {
			t.Errorf("Docker's chain counts: %v, %v; want %v", got, err, want)
		}
	}
	docker(false)
	iptables("-N", "DOCKER-USER")
	docker(false) // nothing leads there
	iptables("-I", "FORWARD", "-j", "DOCKER-USER")
	docker(true)

	before := hostState(t)
	c := chain{Table: "filter", Name: "VMR-x-FWD", Rules: []string{"-i vmrx -j REJECT"},
		Hooks: []hook{{"DOCKER-USER", "-i vmrx"}, {"DOCKER-USER", "-o vmrx"}}}
	if err := h.AddRules("iptables", []chain{c}); err != nil {
		t.Fatal(err)
	}
	iptables("-D", "DOCKER-USER", "-i", "vmrx", "-j", c.Name) // somebody was faster
	for range 2 {                                             // the second time there is nothing left
		if err := h.DelRules("iptables", []chain{c}); err != nil {
			t.Error(err)
		}
	}
	if after := hostState(t); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
}
