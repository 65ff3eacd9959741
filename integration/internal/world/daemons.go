package world

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// daemonPatience is how long a daemon may take to start or to end.
const daemonPatience = 40 * time.Second

// UnpackedDaemons is the /usr that scripts/setup lays out beside the machine's
// own, with daemons that are not installed.
func UnpackedDaemons() string { return unpacked("daemons/usr") }

// unpacked is a folder that scripts/setup lays out.
func unpacked(folder string) string {
	cache := os.Getenv("VMRUN_CACHE_DIR")
	if cache == "" {
		cache = "/var/cache/vmrun"
	}
	return filepath.Join(cache, folder)
}

// InstallDaemons puts the unpacked daemons into the sandbox's /usr, and starts a
// message bus without any policy. State of daemons stays in the sandbox.
func InstallDaemons(t *testing.T) {
	t.Helper()
	mount(t, "overlay", "/usr", "lowerdir="+UnpackedDaemons()+":/usr")
	mount(t, "tmpfs", "/var/lib", "")
	if err := os.MkdirAll("/run/dbus", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/run/dbus/bus.conf", []byte(busConfig), 0o644); err != nil {
		t.Fatal(err)
	}
	// It returns when the bus listens.
	if out, err := exec.Command("dbus-daemon", "--config-file=/run/dbus/bus.conf", "--fork").CombinedOutput(); err != nil {
		t.Fatalf("start message bus: %v: %s", err, out)
	}
}

func mount(t *testing.T, kind, dir, options string) {
	t.Helper()
	if err := unix.Mount(kind, dir, kind, 0, options); err != nil {
		t.Fatalf("mount %s: %v", dir, err)
	}
}

const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/>
<allow send_type="method_call"/><allow send_type="signal"/>
<allow send_requested_reply="true" send_type="method_return"/><allow send_requested_reply="true" send_type="error"/>
<allow receive_type="method_call"/><allow receive_type="method_return"/>
<allow receive_type="error"/><allow receive_type="signal"/></policy></busconfig>
`

// ServeUdev starts udevd, which tells daemons about links. It sees a /dev of its
// own, since it changes the modes of device files, and they are the machine's.
func ServeUdev(t *testing.T) {
	t.Helper()
	const start = `mount -t tmpfs tmpfs /dev && mknod -m 666 /dev/null c 1 3 &&
		/lib/systemd/systemd-udevd --daemon && udevadm trigger --subsystem-match=net && udevadm settle`
	if out, err := exec.Command("unshare", "--mount", "sh", "-c", start).CombinedOutput(); err != nil {
		t.Fatalf("start udevd: %v: %s", err, out)
	}
}

// Bus opens a connection with the message bus.
func Bus(t *testing.T) *dbus.Conn {
	t.Helper()
	conn, err := dbus.Connect("unix:path=/run/dbus/system_bus_socket")
	if err != nil {
		t.Fatalf("connect to message bus: %v", err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// Daemon is a daemon with a name on the message bus.
type Daemon struct {
	name string
	args []string
	bus  *dbus.Conn
	log  string
	cmd  *exec.Cmd
	done chan struct{}
}

// ServeOnBus starts a daemon and waits until it has its name on the bus. What it
// said is shown if the test fails.
func ServeOnBus(t *testing.T, name string, args ...string) *Daemon {
	t.Helper()
	d := &Daemon{name: name, args: args, bus: Bus(t), log: filepath.Join("/run", filepath.Base(args[0])+".log")}
	t.Cleanup(func() {
		if text, err := os.ReadFile(d.log); t.Failed() && err == nil {
			t.Logf("%s said:\n%s", args[0], text)
		}
		d.cmd.Process.Kill()
		<-d.done
	})
	d.Start(t)
	return d
}

// Start starts the daemon anew.
func (d *Daemon) Start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(d.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	d.cmd = exec.Command(d.args[0], d.args[1:]...)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := d.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", d.args[0], err)
	}
	d.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) {
		cmd.Wait() // it was asked to end, or its log says why
		close(done)
	}(d.cmd, d.done)
	d.await(t)
}

// await waits until the daemon has its name.
func (d *Daemon) await(t *testing.T) {
	t.Helper()
	const owners = "org.freedesktop.DBus"
	match := []dbus.MatchOption{dbus.WithMatchInterface(owners), dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, d.name)}
	news := make(chan *dbus.Signal, 8)
	d.bus.Signal(news)
	defer d.bus.RemoveSignal(news)
	if err := d.bus.AddMatchSignal(match...); err != nil {
		t.Fatal(err)
	}
	defer d.bus.RemoveMatchSignal(match...)
	for timeout := time.After(daemonPatience); ; {
		var has bool
		if err := d.bus.BusObject().Call(owners+".NameHasOwner", 0, d.name).Store(&has); err != nil {
			t.Fatal(err)
		}
		if has {
			return
		}
		select {
		case <-news:
		case <-d.done:
			t.Fatalf("%s ended at its start", d.args[0])
		case <-timeout:
			t.Fatalf("%s does not come", d.name)
		}
	}
}

// Stop ends the daemon as systemd would, and waits for it.
func (d *Daemon) Stop(t *testing.T) {
	t.Helper()
	if err := d.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatalf("stop %s: %v", d.args[0], err)
	}
	select {
	case <-d.done:
	case <-time.After(daemonPatience):
		t.Fatalf("%s does not end", d.args[0])
	}
}

// Restart stops and starts the daemon.
func (d *Daemon) Restart(t *testing.T) {
	t.Helper()
	d.Stop(t)
	d.Start(t)
}

// Tool runs a daemon's command and returns what it says.
func Tool(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), daemonPatience)
	defer cancel()
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("run %s: %v: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out)
}

// ServeFirewalld starts firewalld with its own defaults, but for the backend, on
// the message bus.
func ServeFirewalld(t *testing.T, backend string) *Daemon {
	t.Helper()
	config := t.TempDir()
	if err := os.WriteFile(filepath.Join(config, "firewalld.conf"), []byte("FirewallBackend="+backend+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	d := ServeOnBus(t, "org.fedoraproject.FirewallD1",
		"firewalld", "--nofork", "--nopid", "--log-target=console", "--system-config="+config)
	Tool(t, "firewall-cmd", "--get-default-zone") // answered when it has started
	return d
}

// ServeNetworkManager starts NetworkManager as it is installed: it takes every
// wired interface that comes. The settings are lines of its section [connection].
func ServeNetworkManager(t *testing.T, settings ...string) *Daemon {
	t.Helper()
	const config = "/run/nm.conf"
	text := "[main]\nplugins=keyfile\ndns=none\nrc-manager=unmanaged\n[connection]\n" + strings.Join(settings, "\n") + "\n"
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return ServeOnBus(t, "org.freedesktop.NetworkManager", "NetworkManager", "--no-daemon", "--config="+config, "--log-level=INFO")
}

// ServeNetworkd starts systemd-networkd with a file that gives Uplink's address and
// route to eth1, and one that has it run DHCP on every other link.
func ServeNetworkd(t *testing.T) *Daemon {
	t.Helper()
	err := errors.Join(
		os.MkdirAll("/run/systemd/network", 0o755),
		os.WriteFile("/run/systemd/network/00-eth1.network", []byte("[Match]\nName=eth1\n[Network]\nAddress="+Host+"/24\nGateway="+Gateway+"\n"), 0o644),
		os.WriteFile("/run/systemd/network/10-all.network", []byte("[Match]\nName=*\n[Network]\nDHCP=yes\n"), 0o644),
	)
	if err != nil {
		t.Fatal(err)
	}
	return ServeOnBus(t, "org.freedesktop.network1", "/lib/systemd/systemd-networkd")
}

// SawTo tells whether networkd has begun to configure a link.
func (d *Daemon) SawTo(index int) bool {
	// An object's path escapes a digit that comes first (sd_bus_path_encode(3)).
	digits := strconv.Itoa(index)
	path := dbus.ObjectPath(fmt.Sprintf("/org/freedesktop/network1/link/_%x%s", digits[0], digits[1:]))
	state, err := d.bus.Object(d.name, path).GetProperty(d.name + ".Link.AdministrativeState")
	return err == nil && (state.Value() == "configuring" || state.Value() == "configured")
}
