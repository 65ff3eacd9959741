package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
)

const tmuxPrompt = "ready>"

// tmux is a terminal as a person has it: a shell in it, keys that are typed, and
// a screen that is read.
type tmux struct {
	h      *host
	socket string
	env    []string
}

// openTmux opens a terminal on a host, with more environment. $VMRUN is vmrun there.
func openTmux(t *testing.T, h *host, env ...string) *tmux {
	t.Helper()
	x := &tmux{h: h, socket: filepath.Join(t.TempDir(), "tmux"), env: append(append(h.command(t).Env, env...),
		"VMRUN="+os.Getenv(binaryVariable), "TERM=xterm", "LC_ALL=C.UTF-8")}
	x.tmux(t, "new-session", "-d", "-x", "110", "-y", "30", "sh")
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the terminal shows:\n%s", x.tmux(t, "capture-pane", "-p"))
		}
		x.tmux(t, "kill-server")
	})
	x.shows(t, `(?m)^[#$]`)
	x.types(t, "PS1='"+tmuxPrompt+" '") // from the environment root's sh does not take it
	x.shows(t, `(?m)^`+tmuxPrompt)
	return x
}

func (x *tmux) tmux(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command("tmux", append([]string{"-S", x.socket, "-f", "/dev/null"}, args...)...)
	cmd.Env = x.env
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := x.h.Do(cmd.Run); err != nil {
		t.Fatalf("tmux %s: %v: %s", args[0], err, out.String())
	}
	return out.String()
}

// keys types keys by tmux's names.
func (x *tmux) keys(t *testing.T, keys ...string) {
	t.Helper()
	x.tmux(t, append([]string{"send-keys"}, keys...)...)
}

// types types a line.
func (x *tmux) types(t *testing.T, line string) {
	t.Helper()
	x.tmux(t, "send-keys", "-l", line)
	x.keys(t, "Enter")
}

// shows reads the screen until it shows what matches.
func (x *tmux) shows(t *testing.T, pattern string) {
	t.Helper()
	re := regexp.MustCompile(pattern)
	for end := time.Now().Add(sandbox.Slowed(patience)); !re.MatchString(x.tmux(t, "capture-pane", "-p")); {
		if time.Now().After(end) {
			t.Fatalf("the terminal never shows %q", pattern)
		}
	}
}

// clear empties the screen, so that what it then shows is new.
func (x *tmux) clear(t *testing.T) {
	t.Helper()
	x.types(t, "clear")
	x.shows(t, `\A`+tmuxPrompt+`\s*\z`)
}

// modes are the terminal's, as stty tells them.
func (x *tmux) modes(t *testing.T) string {
	t.Helper()
	tty := strings.TrimSpace(x.tmux(t, "display-message", "-p", "#{pane_tty}"))
	out, err := exec.Command("stty", "-a", "-F", tty).CombinedOutput()
	if err != nil {
		t.Fatalf("stty: %v: %s", err, out)
	}
	return string(out)
}

// isRaw fails the test unless a guest gets every key of the terminal.
func (x *tmux) isRaw(t *testing.T) {
	t.Helper()
	modes := x.modes(t)
	for _, mode := range []string{"-isig", "-icanon", "-echo", "-ixon", "-opost"} {
		if !strings.Contains(modes, " "+mode+" ") && !strings.Contains(modes, "\n"+mode+" ") {
			t.Errorf("the guest does not get every key: the terminal lacks %s:\n%s", mode, modes)
		}
	}
}

// inTmux runs a test in a terminal on a host, which has to be as before at its
// end, and so has the terminal.
func inTmux(t *testing.T, f func(t *testing.T, x *tmux)) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables", "tmux")...)
		h := newHost(t)
		newOutside(t, h, "10.70.0.0/24")
		x := openTmux(t, h)
		modes, before := x.modes(t), h.state(t)
		f(t, x)
		x.clear(t)
		if after := x.modes(t); after != modes {
			t.Errorf("the terminal's modes are\n%s, were\n%s", after, modes)
		}
		h.restored(t, before)
	})
}

// A run on a terminal has it, explains its keys, and gives it back at the escape.
func TestTmuxRun(t *testing.T) {
	inTmux(t, func(t *testing.T, x *tmux) {
		x.types(t, `"$VMRUN" run `+writeProfile(t, t.TempDir(), "web", natLAN+micro(t, serveScript))+"; echo code $?")
		x.shows(t, `ctrl-\] \. ends the VM`)
		x.shows(t, `(?m)^serving$`)
		x.isRaw(t)
		x.keys(t, "C-]", "?")
		x.shows(t, `(?m)^ctrl-\] ctrl-\]  send ctrl-\] to the guest$`)
		x.keys(t, "C-]", ".")
		x.shows(t, `(?m)^code 0\n`+tmuxPrompt)
	})
}

// sizeScript says the size of the console's terminal when it changes. A signal that
// comes just before busybox's read begins to wait (by poll(2), up to 1.35) is heeded
// only when that returns.
const sizeScript = `trap 'echo size is $(stty size)' WINCH; echo serving; echo size is $(stty size); until read -t 1 line; do :; done; echo stopping`

// A program on the guest's console fits the terminal that shows it, of run or of
// console, and is told when that gets another size.
func TestTmuxSize(t *testing.T) {
	inTmux(t, func(t *testing.T, x *tmux) {
		resize := func(cols, rows string) {
			t.Helper()
			x.tmux(t, "resize-window", "-x", cols, "-y", rows)
			// Of the window's rows one is tmux's own, unless it has none.
			x.shows(t, `size is `+strings.TrimSpace(x.tmux(t, "display-message", "-p", "#{pane_height} #{pane_width}"))+`\n`)
		}
		profile := writeProfile(t, t.TempDir(), "web", natLAN+micro(t, sizeScript))
		x.types(t, `"$VMRUN" run `+profile+`; echo code $?`)
		x.shows(t, `(?m)^serving$`)
		resize("101", "31")
		resize("90", "25")
		x.keys(t, "Enter")
		x.shows(t, `(?m)^code 0\n`+tmuxPrompt)
		x.h.does(t, "web\n", "run", "-d", "--wait", "log=^serving", profile)
		x.clear(t)
		x.types(t, `"$VMRUN" console web`)
		x.shows(t, `size is `+strings.TrimSpace(x.tmux(t, "display-message", "-p", "#{pane_height} #{pane_width}"))+`\n`)
		resize("110", "30")
		x.keys(t, "Enter")
		x.shows(t, `web has ended\n`+tmuxPrompt)
	})
}

// A console attaches to a VM in the background, shows what it has missed,
// detaches and attaches again; the guest gets what is typed.
func TestTmuxConsole(t *testing.T) {
	inTmux(t, func(t *testing.T, x *tmux) {
		x.h.does(t, "web\n", "run", "-d", "--wait", "log=^serving", writeProfile(t, t.TempDir(), "web", natLAN+micro(t, serveScript)))
		for range 2 {
			x.clear(t)
			x.types(t, `"$VMRUN" console web`)
			x.shows(t, `(?m)^serving$`)
			x.isRaw(t)
			x.keys(t, "C-]", ".")
			x.shows(t, `detached from web\n`+tmuxPrompt)
		}
		x.clear(t)
		x.types(t, `"$VMRUN" console web; echo code $?`)
		x.shows(t, `(?m)^serving$`)
		x.keys(t, "Enter")
		x.shows(t, `(?m)^stopping$`)
		x.shows(t, `web has ended\ncode 0\n`+tmuxPrompt)
	})
}

// Top shows a row for each VM, sorts them, opens the selected one's console, from
// which the escape comes back, and gives the terminal back.
func TestTmuxTop(t *testing.T) {
	inTmux(t, func(t *testing.T, x *tmux) {
		profile := writeProfile(t, t.TempDir(), "web", natLAN+micro(t, serveScript))
		for _, name := range []string{"alpha", "beta"} {
			x.h.does(t, name+"\n", "run", "-d", "--wait", "log=^serving", "--name", name, profile)
		}
		x.types(t, `"$VMRUN" top --interval 500ms; echo code $?`)
		x.shows(t, `vmrun top  VMs: 2 (?s).*\nNAME +STATE.*\nalpha +running .*\nbeta +running `)
		x.keys(t, "n")
		x.shows(t, `\nbeta +running .*\nalpha +running `)
		x.keys(t, "Down", "Up", "Enter")
		x.shows(t, `ctrl-\] \. detaches`)
		x.shows(t, `(?m)^serving$`)
		x.isRaw(t)
		x.keys(t, "C-]", ".")
		x.shows(t, `vmrun top  VMs: 2 `)
		x.h.does(t, "", "kill", "beta")
		x.shows(t, `vmrun top  VMs: 1 `)
		x.keys(t, "q")
		x.shows(t, `(?m)^code 0\n`+tmuxPrompt)
		x.h.does(t, "", "kill", "--all")
	})
}
