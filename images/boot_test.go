package images

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vmrun/vmrun/images/guest"
)

// bootTimeout is for machines far slower than this one.
const bootTimeout = 2 * time.Minute

// bootable is what all boot tests need of the host.
type bootable struct {
	qemu, kernel, init, busybox string
}

func newBootable(t *testing.T) bootable {
	t.Helper()
	b := bootable{
		qemu:    needProgram(t, "qemu-system-x86_64"),
		busybox: needProgram(t, "busybox"),
		kernel:  os.Getenv("VMRUN_TEST_KERNEL"),
	}
	if b.kernel == "" {
		var err error
		b.kernel, err = FindKernel("/boot", filepath.Join(cmp.Or(os.Getenv("VMRUN_CACHE_DIR"), "/var/cache/vmrun"), "kernel", "boot"))
		if err != nil {
			skip(t, err)
		}
	}
	b.init = filepath.Join(t.TempDir(), "init")
	build := exec.Command("go", "build", "-o", b.init, "./guest/internal/testinit")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build init: %v\n%s", err, out)
	}
	return b
}

// machine is a running QEMU with a micro guest in it.
type machine struct {
	t       *testing.T
	cmd     *exec.Cmd
	stdin   io.WriteCloser // typed on the console
	console *bufio.Reader
	seen    strings.Builder
	qmp     string // socket
}

// boot starts a machine with the given command, and QEMU's args added.
func (b bootable) boot(t *testing.T, spec MicroSpec, args ...string) *machine {
	t.Helper()
	spec.Kernel, spec.Init = b.kernel, b.init
	initrd, err := PrepareMicro(t.Context(), spec, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, qmp: filepath.Join(t.TempDir(), "qmp")}
	m.cmd = exec.Command(b.qemu, append([]string{
		"-accel", "tcg", "-machine", "q35", "-m", "256", "-nodefaults", "-no-user-config", "-no-reboot",
		"-display", "none", "-serial", "stdio", "-qmp", "unix:" + m.qmp + ",server=on,wait=off",
		"-kernel", b.kernel, "-initrd", initrd, "-append", "console=ttyS0 quiet no_timer_check",
	}, args...)...)
	m.cmd.Stderr = os.Stderr
	if m.stdin, err = m.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	m.console = bufio.NewReader(out)
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	deadline := time.AfterFunc(bootTimeout, func() { m.cmd.Process.Kill() })
	t.Cleanup(func() {
		deadline.Stop()
		m.stdin.Close()
		m.cmd.Process.Kill()
		m.cmd.Wait()
		if t.Failed() {
			t.Logf("console:\n%s", m.seen.String())
		}
	})
	return m
}

// expect reads the console up to a line that matches, and returns its groups.
func (m *machine) expect(pattern string) []string {
	m.t.Helper()
	re := regexp.MustCompile(`^(?:` + pattern + `)$`)
	for {
		line, err := m.console.ReadString('\n')
		m.seen.WriteString(line)
		if match := re.FindStringSubmatch(strings.TrimRight(line, "\r\n")); match != nil {
			return match
		}
		if err != nil {
			m.t.Fatalf("wait for %q on the console: %v", pattern, err)
		}
	}
}

// end waits for the power off.
func (m *machine) end() {
	m.t.Helper()
	rest, err := io.ReadAll(m.console)
	m.seen.Write(rest)
	if err := errors.Join(err, m.cmd.Wait()); err != nil {
		m.t.Fatalf("QEMU: %v", err)
	}
	if strings.Contains(m.seen.String(), "panic") {
		m.t.Error("the kernel or init panicked")
	}
}

// powerdown presses the power button.
func (m *machine) powerdown() {
	m.t.Helper()
	conn, err := net.Dial("unix", m.qmp)
	if err != nil {
		m.t.Fatal(err)
	}
	defer conn.Close()
	in := json.NewDecoder(conn)
	for _, command := range []string{"", "qmp_capabilities", "system_powerdown"} {
		if command != "" {
			fmt.Fprintf(conn, "{\"execute\": %q}\n", command)
		}
		var reply map[string]any
		if err := in.Decode(&reply); err != nil || reply["error"] != nil {
			m.t.Fatalf("%q: %v %v", command, err, reply)
		}
	}
}

const mac = "52:54:00:aa:bb:cc"

var userNIC = []string{"-netdev", "user,id=n0", "-device", "virtio-net-pci,romfile=,netdev=n0,mac=" + mac}

// The main path: a lease, a command's exit code on the console and on the port.
func TestBootCommand(t *testing.T) {
	b := newBootable(t)
	exitFile := filepath.Join(t.TempDir(), "exit")
	m := b.boot(t, MicroSpec{
		Busybox: b.busybox,
		Command: []string{"sh", "-c", "tty; ps; echo a command, with a comma; ping -c1 -W5 10.0.2.2 >/dev/null && echo pinged; head -c4 /dev/vda; exit 7"},
	}, append(userNIC,
		"-drive", "if=none,id=d0,format=raw,read-only=on,file="+rawImage(t, "disk contents"), "-device", "virtio-blk-pci,drive=d0",
		"-device", "virtio-serial-pci", "-chardev", "file,id=exit,path="+exitFile, "-device", "virtserialport,chardev=exit,name="+guest.ExitPort,
	)...)
	m.expect(`vmrun-guest: eth0 ` + mac + ` 10\.0\.2\.15/24 gw 10\.0\.2\.2 dns 10\.0\.2\.3`)
	m.expect("/dev/ttyS0")
	m.expect("a command, with a comma")
	m.expect("pinged")
	m.expect("disk" + "vmrun-guest: exit 7")
	m.end()
	if got, err := os.ReadFile(exitFile); err != nil || string(got) != "exit 7\n" {
		t.Errorf("exit port: %q, %v", got, err)
	}
}

func rawImage(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, append([]byte(text), make([]byte, 4096)...), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// The power button ends a command, which gets a SIGTERM, and a shell, which
// would ignore one.
func TestBootPowerdown(t *testing.T) {
	b := newBootable(t)
	t.Run("command", func(t *testing.T) {
		m := b.boot(t, MicroSpec{
			Busybox: b.busybox,
			Command: []string{"sh", "-c", "trap 'echo asked to end; exit 3' TERM; echo ready; while :; do sleep 1 & wait; done"},
		})
		m.expect("ready")
		m.powerdown()
		m.expect("asked to end")
		m.expect("vmrun-guest: exit 3")
		m.end()
	})
	t.Run("shell", func(t *testing.T) {
		m := b.boot(t, MicroSpec{Busybox: b.busybox}, userNIC...)
		m.expect("vmrun-guest: eth0 .*")
		m.powerdown()
		m.expect(".*vmrun-guest: exit [0-9]+")
		m.end()
	})
	t.Run("neither", func(t *testing.T) {
		m := b.boot(t, MicroSpec{})
		m.expect("vmrun-guest: no command and no shell: .*")
		m.powerdown()
		m.expect("vmrun-guest: exit 0")
		m.end()
	})
}

// A user types: ctrl-C ends a program but not the shell, and the programs that
// power a machine off do.
func TestBootShell(t *testing.T) {
	m := newBootable(t).boot(t, MicroSpec{Busybox: needProgram(t, "busybox")})
	// What is typed before is lost.
	m.expect("Enter 'help' for .*")
	// The terminal echoes what is typed, so the answers must differ from it.
	// It is told by the program that ctrl-C is for, for one that is not there yet
	// does not get it.
	fmt.Fprint(m.stdin, "sh -c 'echo $((20+1)) $(hostname -s | wc -l); exec sleep 1000'\n")
	m.expect("21 1")
	fmt.Fprint(m.stdin, "\x03")
	fmt.Fprint(m.stdin, "echo after $((20+2))\n")
	m.expect("after 22")
	fmt.Fprint(m.stdin, "poweroff\n")
	m.expect(".*vmrun-guest: exit [0-9]+")
	m.end()
}

// A NIC that nobody gives a lease holds up neither the others nor, for ever,
// the command.
func TestBootNoLease(t *testing.T) {
	b := newBootable(t)
	m := b.boot(t, MicroSpec{Command: []string{"/no/such/program"}, LeaseTimeout: 8 * time.Second},
		append(userNIC, "-netdev", "hubport,id=n1,hubid=0", "-device", "virtio-net-pci,romfile=,netdev=n1,mac=52:54:00:aa:bb:dd")...)
	m.expect(`vmrun-guest: eth0 ` + mac + ` 10\.0\.2\.15/24 .*`)
	m.expect(`vmrun-guest: eth1 52:54:00:aa:bb:dd no lease: no answer from a DHCP server within 8s`)
	m.expect(`vmrun-guest: run /no/such/program: .*no such file or directory`)
	m.expect(`vmrun-guest: exit 127`)
	m.end()
}
