package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/vmrun/vmrun/images"
	"github.com/vmrun/vmrun/netsetup"
	"github.com/vmrun/vmrun/profiles"
)

const fakeName = "qemu-system-x86_64"

// TestMain makes the test binary QEMU where it is started under its name.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == fakeName {
		fakeQEMU{behaviour: behaviour(os.Args)}.main()
	}
	os.Exit(m.Run())
}

// fakeQEMU stands in for QEMU. How it behaves is told by fake=WORD in the
// guest's kernel command line.
type fakeQEMU struct {
	behaviour string
	qmp       net.Conn
	console   net.Conn
	exit      net.Conn // nil: no such port
}

func behaviour(args []string) string {
	_, rest, _ := strings.Cut(strings.Join(args, " "), "fake=")
	word, _, _ := strings.Cut(rest, " ")
	return word
}

func (q fakeQEMU) main() {
	accel := "tcg"
	if strings.Contains(strings.Join(os.Args, " "), "accel=kvm") {
		accel = "kvm"
	}
	if q.behaviour == "dead" || q.behaviour == "no-"+accel {
		fmt.Fprintf(os.Stderr, "qemu: the fake does not work with %s\n", accel)
		os.Exit(1)
	}
	files := openFiles()
	q.qmp, q.console, q.exit = inherited("qmp"), inherited("con"), inherited("exit")
	if q.behaviour == "mute" {
		io.Copy(io.Discard, q.console)
	}
	if q.behaviour == "mum" {
		q.serve()
	}
	fmt.Fprintf(q.console, "files: %s\n", strings.Join(files, " "))
	q.serve()
}

func (q fakeQEMU) serve() {
	q.say(`{"QMP": {"version": {"qemu": {"major": 9, "minor": 9, "micro": 9}, "package": ""}, "capabilities": []}}`)
	commands := json.NewDecoder(q.qmp)
	for {
		var c struct {
			Execute string
			ID      json.RawMessage

			Arguments fakeArguments
		}
		if err := commands.Decode(&c); err != nil {
			os.Exit(3)
		}
		q.do(c.Execute, string(c.ID), c.Arguments)
	}
}

// fakeArguments are those of commands that the fake looks at.
type fakeArguments struct{ ID string }

func (q fakeQEMU) do(command, id string, arguments fakeArguments) {
	reply := func(result string) { q.say(fmt.Sprintf(`{"return": %s, "id": %s}`, result, id)) }
	switch {
	case command == "query-status":
		word := map[bool]string{true: "running", false: "paused"}[q.behaviour != "paused"]
		reply(fmt.Sprintf(`{"running": %v, "status": %q}`, word == "running", word))
	case command == "system_reset" && q.behaviour == "echo":
		reply("{}")
		q.event("RESET", `{"guest": false, "reason": "host-qmp-system-reset"}`)
	case command == "stop" || command == "set-action":
		fmt.Fprintln(q.console, command)
		reply("{}")
	case command == "device_del" && q.behaviour == "late":
		q.say(fmt.Sprintf(`{"error": {"class": "DeviceNotFound", "desc": "the fake has none"}, "id": %s}`, id))
	case command == "device_del":
		reply("{}")
		q.event("DEVICE_DELETED", fmt.Sprintf(`{"device": %q}`, arguments.ID))
	case command == "quit" && q.behaviour == "stubborn":
		fmt.Fprintln(q.console, "quit")
	case command == "cont" && q.behaviour == "refuse":
		q.say(fmt.Sprintf(`{"error": {"class": "GenericError", "desc": "the fake refuses"}, "id": %s}`, id))
	case command == "system_powerdown":
		reply("{}")
		fmt.Fprintln(q.console, "button")
		if q.behaviour != "stubborn" && q.behaviour != "lazy" {
			q.shutdown("guest-shutdown")
		}
	case command == "quit":
		q.event("SHUTDOWN", `{"guest": false, "reason": "host-qmp-quit"}`)
		reply("{}")
		os.Exit(0)
	default:
		reply("{}")
		if command == "cont" {
			q.begin()
		}
	}
}

// begin is what the guest does of its own accord.
func (q fakeQEMU) begin() {
	if q.behaviour == "mum" {
		q.shutdown("guest-reset")
	}
	fmt.Fprintln(q.console, "begin")
	switch word, code, _ := strings.Cut(q.behaviour, "-"); word {
	case "exit":
		fmt.Fprintf(q.exit, "exit %s\n", code)
		q.shutdown("guest-shutdown")
	case "off":
		q.shutdown("guest-shutdown")
	case "reset":
		q.shutdown("guest-reset")
	case "term":
		q.shutdown("host-signal")
	case "panic":
		q.event("GUEST_PANICKED", `{"action": "pause"}`)
		q.shutdown("guest-panic")
	case "crash":
		fmt.Fprintln(os.Stderr, "qemu: the fake crashes")
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "flood":
		io.WriteString(q.console, strings.Repeat("0123456789abcde\n", 2*consoleRing/16))
		q.shutdown("guest-shutdown")
	case "echo":
		go io.Copy(q.console, q.console)
	}
}

func (q fakeQEMU) shutdown(reason string) {
	q.event("SHUTDOWN", fmt.Sprintf(`{"guest": true, "reason": %q}`, reason))
	if q.behaviour == "linger" {
		io.ReadFull(q.console, make([]byte, 1))
	}
	os.Exit(0)
}

func (q fakeQEMU) event(name, data string) {
	q.say(fmt.Sprintf(`{"event": %q, "data": %s, "timestamp": {"seconds": 1, "microseconds": 0}}`, name, data))
}

func (q fakeQEMU) say(line string) { io.WriteString(q.qmp, line+"\r\n") }

// inherited opens the socket of a character device; nil if there is none.
func inherited(id string) net.Conn {
	for _, arg := range os.Args {
		if fd, ok := strings.CutPrefix(arg, "socket,id="+id+",fd="); ok {
			n, err := strconv.Atoi(fd)
			if err != nil {
				panic(err)
			}
			conn, err := net.FileConn(os.NewFile(uintptr(n), id))
			if err != nil {
				panic(err)
			}
			return conn
		}
	}
	return nil
}

// openFiles lists this process's descriptors past the standard ones, without
// those of Go's own and those whose target begins with another prefix.
func openFiles(without ...string) []string {
	without = append(without, "anon_inode:[event", "/sys/fs/cgroup/")
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	var fds []int
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		fd, _ := strconv.Atoi(e.Name())
		skip := slices.ContainsFunc(without, func(prefix string) bool { return strings.HasPrefix(target, prefix) })
		if err == nil && fd >= firstInherited && !skip {
			fds = append(fds, fd)
		}
	}
	slices.Sort(fds)
	var texts []string
	for _, fd := range fds {
		texts = append(texts, strconv.Itoa(fd))
	}
	return texts
}

// fakeNet hands out ports whose TAPs are /dev/null, and keeps count.
type fakeNet struct {
	mu       sync.Mutex
	refuse   int // the port with this number, from 1, is refused
	attached int
	open     int
	ip       netip.Addr
	left     chan struct{} // gets one for each port that is closed; nil: nobody wants to know
	leaving  error         // of each port's Close
}

type fakePort struct {
	net   *fakeNet
	files []*os.File
}

func (n *fakeNet) attach(_ context.Context, _ netsetup.Host, _ netsetup.Spec, p netsetup.PortSpec) (port, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.attached++; n.attached == n.refuse {
		return nil, errors.New("the fake refuses")
	}
	fp := &fakePort{net: n}
	for range p.Queues {
		f, err := os.Open(os.DevNull)
		if err != nil {
			return nil, err
		}
		fp.files = append(fp.files, f)
	}
	n.open++
	return fp, nil
}

func (p *fakePort) Files() []*os.File { return p.files }

func (p *fakePort) closeFiles() error {
	var errs []error
	for _, f := range p.files {
		errs = append(errs, f.Close())
	}
	p.files = nil
	return errors.Join(errs...)
}

func (p *fakePort) IP() netip.Addr       { return p.net.ip }
func (p *fakePort) Subnet() netip.Prefix { return netip.Prefix{} }
func (p *fakePort) Gateway() netip.Addr  { return netip.Addr{} }
func (p *fakePort) Link() string         { return "vmtfake" }
func (p *fakePort) Bridge() string       { return "vmrfake" }
func (p *fakePort) MTU() int             { return 1400 }
func (p *fakePort) Members() int         { return 1 }

func (p *fakePort) Close() error {
	p.net.mu.Lock()
	defer p.net.mu.Unlock()
	p.net.open--
	if p.net.left != nil {
		p.net.left <- struct{}{}
	}
	return errors.Join(p.closeFiles(), p.net.leaving)
}

// fixture is a host with a fake QEMU and a fake network.
type fixture struct {
	host    Host
	profile profiles.Profile
	net     *fakeNet
	options Options
	log     *syncBuffer
}

// newFixture has a machine whose guest behaves in some way.
func newFixture(t *testing.T, behaviour string) *fixture {
	t.Helper()
	dir := t.TempDir()
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{net: &fakeNet{ip: netip.MustParseAddr("127.0.0.1")}, log: &syncBuffer{}}
	qemuPath, kernel := filepath.Join(dir, fakeName), filepath.Join(dir, "vmlinuz")
	if err := errors.Join(os.Symlink(executable, qemuPath), os.WriteFile(kernel, []byte("kernel"), 0o600)); err != nil {
		t.Fatal(err)
	}
	f.host = Host{
		Executable: executable, QEMU: qemuPath, QEMUImg: "qemu-img", EUID: os.Geteuid(), Privileged: true,
		Dirs: Dirs{Runtime: filepath.Join(dir, "run"), State: filepath.Join(dir, "state"), Cache: filepath.Join(dir, "cache")},
		User: User{Name: "me", UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())},
		KVM:  Device{Path: "/dev/kvm", Mode: 0o666},
		Log:  slog.New(slog.NewTextHandler(f.log, nil)),
	}
	f.profile = profiles.Profile{
		Name:    "web",
		File:    "/srv/web.toml",
		Machine: profiles.Machine{CPUs: 1, Memory: 64 << 20, Accel: profiles.AccelTCG, Type: profiles.Q35, CPU: "max"},
		Boot:    profiles.Boot{Kernel: kernel, Cmdline: "fake=" + behaviour},
	}
	f.options = Options{
		attach: f.net.attach,
		micro:  func(context.Context, images.MicroSpec, string) (string, error) { return kernel, nil },
	}
	return f
}

func (f *fixture) micro() *fixture {
	f.profile.Boot.Initrd = profiles.InitrdMicro
	return f
}

func (f *fixture) plan(t *testing.T) *Plan {
	t.Helper()
	plan, err := NewPlan(&f.profile, f.host)
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

// launch starts the machine and closes it at the test's end.
func (f *fixture) launch(t *testing.T) *Instance {
	t.Helper()
	i, err := Launch(t.Context(), f.plan(t), f.host, f.options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := i.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return i
}

// wait waits for the machine's end.
func wait(t *testing.T, i *Instance) Ending {
	t.Helper()
	ending, err := i.Wait(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return ending
}

// syncBuffer is a buffer for several goroutines.
type syncBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
