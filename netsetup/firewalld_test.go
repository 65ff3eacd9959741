package netsetup

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// startFirewalld runs firewalld and a bus for it, in the test's namespaces.
func startFirewalld(t *testing.T) {
	t.Helper()
	start(t, "firewalld", "--nofork", "--nopid")
	if !within(time.Minute, func() bool { return exec.Command("firewall-cmd", "--state").Run() == nil }) {
		t.Fatal("firewalld does not start")
	}
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

// start runs a daemon until the end of the test.
func start(t *testing.T, name string, args ...string) {
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
	t.Cleanup(func() {
		cmd.Process.Signal(unix.SIGTERM) // firewalld takes its rules away then
		cmd.Wait()                       // it was told to end
		text, _ := os.ReadFile(log.Name())
		log.Close()
		if t.Failed() {
			t.Logf("%s said:\n%s", name, text)
		}
	})
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
	zone := func(p *Port) string {
		out, _ := exec.Command("firewall-cmd", "--get-zone-of-interface="+p.Bridge()).CombinedOutput() // 2: of none
		return string(out)
	}
	passes := func() bool { // a try that is lost is not waited for
		c, err := dial(t, "guest", "192.0.2.1:7", 100*time.Millisecond)
		if err != nil {
			return false
		}
		defer c.Close()
		return echoes(c) == nil
	}
	for _, late := range []bool{false, true} {
		withEach(t, func(t *testing.T, h Host) {
			if !late {
				startFirewalld(t)
			}
			hostState(t)
			before := hostState(t)
			p, err := Attach(context.Background(), h, specs()["nat"], testPort())
			if err != nil {
				t.Fatal(err)
			}
			guest(t, p)
			if late {
				startFirewalld(t)
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
			if reaches(t, "out", "10.70.0.3:7") {
				t.Error("a machine on the uplink reaches the guest")
			}
			if err := p.Close(); err != nil {
				t.Errorf("%v\n%s", err, keeperLogs(h))
			}
			if got := zone(p); got != "no zone\n" {
				t.Errorf("firewalld still trusts the bridge: %s", got)
			}
			ip(t, "link", "del", "guest0")
			if diff := cmp.Diff(before, hostState(t)); diff != "" {
				t.Errorf("left behind:\n%s", diff)
			}
		})
	}
}
