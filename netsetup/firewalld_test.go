package netsetup

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// startFirewalld runs firewalld with its own defaults, but for the backend, on the
// bus of the test's namespaces.
func startFirewalld(t *testing.T, backend string) (stop func()) {
	t.Helper()
	config := t.TempDir()
	if err := os.WriteFile(filepath.Join(config, "firewalld.conf"), []byte("FirewallBackend="+backend+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	stop = start(t, "firewalld", "--nofork", "--nopid", "--system-config="+config)
	if !within(time.Minute, func() bool { return exec.Command("firewall-cmd", "--state").Run() == nil }) {
		t.Fatal("firewalld does not start")
	}
	return stop
}

func startBus(t *testing.T) {
	t.Helper()
	for _, dir := range []string{"/run/dbus", "/run/firewalld"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	start(t, "dbus-daemon", "--system", "--nofork", "--nopidfile")
	if !within(20*time.Second, func() bool { _, err := os.Stat("/run/dbus/system_bus_socket"); return err == nil }) {
		t.Fatal("the bus does not start")
	}
}

// start runs a daemon until it is stopped, or to the end of the test.
func start(t *testing.T, name string, args ...string) (stop func()) {
	t.Helper()
	cmd := exec.Command(name, args...)
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		cmd.Process.Signal(unix.SIGTERM) // firewalld takes its rules away then
		cmd.Wait()                       // it was told to end
		text, _ := os.ReadFile(log.Name())
		log.Close()
		if t.Failed() {
			t.Logf("%s said:\n%s", name, text)
		}
	})
	t.Cleanup(stop)
	return stop
}

// useUnpacked puts what scripts/setup has unpacked without installing it into
// /usr.
func useUnpacked(t *testing.T) {
	t.Helper()
	cache := os.Getenv("VMRUN_CACHE_DIR")
	if cache == "" {
		cache = "/var/cache/vmrun"
	}
	usr := filepath.Join(cache, "daemons/usr")
	if _, err := os.Stat(usr); err != nil {
		return // what is missing shows when it is looked for
	}
	if err := unix.Mount("overlay", "/usr", "overlay", 0, "lowerdir="+usr+":/usr"); err != nil {
		t.Fatal(err)
	}
}

// TestFirewalld: guests' traffic passes where firewalld rejects what it does not
// know, also after it has reloaded; where it starts later, too. What firewalld
// would let pass is still judged by us.
func TestFirewalld(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	useUnpacked(t)
	for _, program := range []string{"firewalld", "firewall-cmd", "dbus-daemon"} {
		if _, err := exec.LookPath(program); err != nil {
			skip(t, "firewalld", err.Error())
		}
	}
	if err := unix.Mount("tmpfs", "/var/log", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	street(t)
	startBus(t)
	for i, c := range []struct{ theirs, ours string }{
		{"nftables", "nftables"},
		{"nftables", "iptables"},
		{"iptables", "auto"}, // nftables alone would leave iptables as firewalld has them
		{"iptables", "iptables"},
	} {
		for _, late := range []bool{false, true} {
			if !long() && late != (i%2 == 1) {
				continue // there is time for half of them
			}
			t.Run(fmt.Sprintf("firewalld by %s, vmrun by %s, late %v", c.theirs, c.ours, late), func(t *testing.T) {
				h := testHost(t)
				h.Firewall = c.ours
				besideFirewalld(t, h, c.theirs, late)
			})
		}
	}
}

// besideFirewalld attaches a port where firewalld runs already, or will soon.
func besideFirewalld(t *testing.T, h Host, theirs string, late bool) {
	look := func(t *testing.T) string { // firewalld makes its chains anew, in any order
		lines := strings.Split(hostState(t), "\n")
		slices.Sort(lines)
		return strings.Join(lines, "\n")
	}
	stop := startFirewalld(t, theirs)
	look(t) // makes the tables that listing makes
	before := look(t)
	if late {
		stop()
	}
	p, err := Attach(context.Background(), h, specs()["nat"], testPort())
	if err != nil {
		t.Fatal(err)
	}
	guest(t, p)
	if late {
		startFirewalld(t, theirs)
	}
	passesReload(t, h)
	if reaches(t, "out", "10.70.0.3:7") {
		t.Error("a machine on the uplink reaches the guest")
	}
	if err := p.Close(); err != nil {
		t.Errorf("%v\n%s", err, keeperLogs(h))
	}
	if out, _ := exec.Command("firewall-cmd", "--get-zone-of-interface="+p.Bridge()).CombinedOutput(); string(out) != "no zone\n" {
		t.Errorf("firewalld still trusts the bridge: %s", out)
	}
	ip(t, "link", "del", "guest0")
	leftNothing(t, h, before, look)
}

// passesReload holds that the guest gets out, and does so again soon after firewalld
// has reloaded.
func passesReload(t *testing.T, h Host) {
	t.Helper()
	passes := func() bool { // a try that is lost is not waited for
		c, err := dial(t, "guest", "192.0.2.1:7", 100*time.Millisecond)
		if err != nil {
			return false
		}
		defer c.Close()
		return echoes(c) == nil
	}
	if !within(10*time.Second, passes) {
		t.Errorf("the guest does not get out:\n%s\n%s", shell(t, "nft list ruleset"), keeperLogs(h))
	}
	shell(t, "firewall-cmd --reload")
	reloaded := time.Now()
	if !within(10*time.Second, passes) {
		t.Errorf("the guest does not get out after firewalld has reloaded:\n%s", keeperLogs(h))
	}
	took := time.Since(reloaded)
	t.Logf("passes again %v after the reload", took)
	if took > rulesLimit() {
		t.Errorf("passes again %v after the reload, want %v", took, rulesLimit())
	}
}
