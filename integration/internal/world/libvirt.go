package world

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const libvirtLog = "/run/libvirtd.log"

// Libvirt is a libvirt daemon of the sandbox, with no driver but that for
// networks.
type Libvirt struct{ pid int }

// ServeLibvirt starts libvirtd in the sandbox, with folders of its own, and
// waits until it listens. It knows no network.
func ServeLibvirt(t *testing.T) *Libvirt {
	t.Helper()
	for _, dir := range []string{"/etc/libvirt", "/var/lib"} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			t.Fatalf("mount %s: %v", dir, err)
		}
	}
	drivers, err := filepath.Glob("/usr/lib/*/libvirt/connection-driver/libvirt_driver_network.so")
	if err != nil || len(drivers) != 1 {
		t.Fatalf("find libvirt's network driver: %v, %v", drivers, err)
	}
	own := t.TempDir()
	if err := os.Symlink(drivers[0], filepath.Join(own, filepath.Base(drivers[0]))); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("libvirtd", "--daemon", "--pid-file", "/run/libvirtd.pid") // returns when it is ready
	cmd.Env = append(os.Environ(), "LIBVIRT_DRIVER_DIR="+own, "LIBVIRT_LOG_OUTPUTS=2:file:"+libvirtLog)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("start libvirtd: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if text, err := os.ReadFile(libvirtLog); t.Failed() && err == nil {
			t.Logf("libvirtd said:\n%s", text)
		}
	})
	text, err := os.ReadFile("/run/libvirtd.pid")
	if err != nil {
		t.Fatal(err)
	}
	l := &Libvirt{}
	if _, err := fmt.Sscan(string(text), &l.pid); err != nil {
		t.Fatalf("read process id of libvirtd: %v", err)
	}
	return l
}

// Define defines a NAT network with DHCP, as libvirt's packages define default:
// its address is the first of the given /24, whose last number is left out. Its
// bridge has no spanning tree, whose timers would be part of the host's state.
func (l *Libvirt) Define(t *testing.T, name, bridge, subnet string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), name+".xml")
	text := fmt.Sprintf(`<network><name>%[1]s</name><forward mode='nat'/><bridge name='%[2]s' stp='off' delay='0'/>
<ip address='%[3]s.1' netmask='255.255.255.0'><dhcp><range start='%[3]s.2' end='%[3]s.254'/></dhcp></ip></network>`,
		name, bridge, subnet)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	l.Virsh(t, "net-define", file)
}

// Virsh runs a command of virsh and returns what it says.
func (l *Libvirt) Virsh(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("virsh", append([]string{"--connect", "network:///system", "--quiet"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("virsh %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Active tells whether a network is active.
func (l *Libvirt) Active(t *testing.T, name string) bool {
	t.Helper()
	return strings.Contains(l.Virsh(t, "net-list"), " "+name+" ")
}

// Signal sends the daemon a signal.
func (l *Libvirt) Signal(t *testing.T, s unix.Signal) {
	t.Helper()
	if err := unix.Kill(l.pid, s); err != nil {
		t.Fatalf("signal libvirtd: %v", err)
	}
}
