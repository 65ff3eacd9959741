package integration

import (
	"fmt"
	"io"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
)

// The terminal is as it was, however a run on it ends.
func TestTerminal(t *testing.T) {
	beside(t)
	for _, c := range []struct {
		name string
		end  func(*testing.T, *machine)
		code int
	}{
		{"power off", func(t *testing.T, m *machine) { m.say(t, "") }, 0},
		{"escape", func(t *testing.T, m *machine) { m.say(t, "\x1d.") }, 0},
		{"SIGTERM", func(t *testing.T, m *machine) { kill(t, unix.SIGTERM, vmrunWord) }, 143},
		{"SIGKILL", func(t *testing.T, m *machine) { kill(t, unix.SIGKILL, vmrunWord) }, -1},
		{"no qemu", func(t *testing.T, m *machine) { kill(t, unix.SIGKILL, qemuWord) }, 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			sandbox.Run(t, func(t *testing.T) {
				feature.Needs(t, append(bootFeatures, "tun", "iptables")...)
				h, term := newHost(t), openTerminal(t)
				fresh, before := term.settings(t), h.state(t)
				vm := h.runOn(t, term, writeProfile(t, t.TempDir(), "web", natLAN+micro(t, serveScript)))
				vm.expect(t, `serving\n`)
				if during := term.settings(t); during.Lflag&(unix.ICANON|unix.ECHO|unix.ISIG) != 0 {
					t.Errorf("the guest does not get every key: the terminal's modes are %#x", during.Lflag)
				}
				c.end(t, vm)
				vm.ends(t, c.code)
				h.restoredButFiles(t, before) // waits for whoever restores the terminal of a killed run
				if after := term.settings(t); *after != *fresh {
					t.Errorf("the terminal is left as\n%+v, was\n%+v", after, fresh)
				}
			})
		})
	}
}

// terminal is a pseudo terminal: what is written to user is typed, what is read
// from it is shown.
type terminal struct{ user, line *os.File }

func openTerminal(t *testing.T) terminal {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatalf("open terminal: %v", err)
	}
	user := os.NewFile(uintptr(fd), "terminal")
	t.Cleanup(func() { user.Close() })
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatalf("unlock terminal: %v", err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatalf("name terminal: %v", err)
	}
	line, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatalf("open terminal: %v", err)
	}
	t.Cleanup(func() { line.Close() })
	return terminal{user, line}
}

func (term terminal) settings(t *testing.T) *unix.Termios {
	t.Helper()
	mode, err := unix.IoctlGetTermios(int(term.line.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatalf("read terminal's modes: %v", err)
	}
	return mode
}

// runOn boots the VM of a profile as a shell would: vmrun has the terminal as
// its controlling one.
func (h *host) runOn(t *testing.T, term terminal, profile string) *machine {
	t.Helper()
	shown := newTranscript()
	m := &machine{cmd: h.command(t, "run", profile), stdin: term.user, console: shown, messages: shown}
	m.cmd.Stdin, m.cmd.Stdout, m.cmd.Stderr = term.line, term.line, term.line
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	h.launch(t, m)
	go io.Copy(shown, term.user) // until the terminal is closed
	return m
}
