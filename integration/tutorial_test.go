package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
)

// TestTutorial plays docs/tutorial.md as a person would, command by command, and
// holds that it shows what they say, and that the host is then as before.
func TestTutorial(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, append(bootFeatures, "tun", "iptables", "tmux", "curl")...)
		h := newHost(t)
		newOutside(t, h, "10.70.0.0/24")
		p := newPlayer(t, h)
		before := h.state(t)
		for _, b := range tutorialBlocks(t) {
			p.play(t, b)
		}
		h.restoredButFiles(t, before) // the curious may look at the logs afterwards
	})
}

// tutorialBlock is a fenced block of the tutorial.
type tutorialBlock struct {
	line int
	kind string // "toml file=NAME", "console", "console terminal"
	text []string
}

func tutorialBlocks(t *testing.T) []tutorialBlock {
	t.Helper()
	page, err := os.ReadFile("../docs/tutorial.md")
	if err != nil {
		t.Fatal(err)
	}
	var all []tutorialBlock
	fenced := false
	for i, line := range strings.Split(string(page), "\n") {
		kind, fence := strings.CutPrefix(line, "```")
		switch {
		case fence && !fenced:
			all, fenced = append(all, tutorialBlock{line: i + 1, kind: kind}), true
		case fence:
			fenced = false
		case fenced:
			last := &all[len(all)-1]
			last.text = append(last.text, line)
		}
	}
	return all
}

// player is a person with the tutorial, in a folder of their own.
type player struct {
	h        *host
	dir      string
	env      []string
	terminal *tmux
}

// newPlayer has vmrun installed. It is root, so that its sudo has nothing to do.
func newPlayer(t *testing.T, h *host) *player {
	t.Helper()
	p := &player{h: h, dir: t.TempDir()}
	bin := t.TempDir()
	if err := os.Symlink(os.Getenv(binaryVariable), filepath.Join(bin, "vmrun")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, "sudo"), []byte("#!/bin/sh\nexec \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	p.env = append(h.command(t).Env, "PATH="+bin+":"+os.Getenv("PATH"), "VMRUN_CACHE_DIR="+cacheWithKernel(t))
	p.terminal = openTmux(t, h, p.env...)
	p.terminal.types(t, "cd "+p.dir)
	return p
}

// cacheWithKernel is a new cache folder with the tests' kernel in it, where that
// is not the host's.
func cacheWithKernel(t *testing.T) string {
	t.Helper()
	kernel, err := feature.Kernel()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if root := filepath.Dir(filepath.Dir(kernel.Image)); root != "/" {
		if err := os.Symlink(root, filepath.Join(dir, "kernel")); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func (p *player) play(t *testing.T, b tutorialBlock) {
	t.Helper()
	name, isFile := strings.CutPrefix(b.kind, "toml file=")
	switch {
	case isFile:
		p.write(t, name, strings.Join(b.text, "\n")+"\n")
	case b.kind == "console":
		p.run(t, b)
	case b.kind == "console terminal":
		p.useTerminal(t, b)
	case b.kind == "sh": // building vmrun, which has been done
	default:
		t.Fatalf("docs/tutorial.md:%d: nobody knows what to do with a block %q", b.line, b.kind)
	}
}

// write writes a profile. All guests of the tests run under TCG.
func (p *player) write(t *testing.T, name, text string) {
	t.Helper()
	text = strings.Replace(text, `accel = "auto"`, `accel = "tcg"`, 1)
	if err := os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// run runs the commands of a block, each of which has to succeed and to say, in
// this order, the lines that follow it.
func (p *player) run(t *testing.T, b tutorialBlock) {
	t.Helper()
	var said []string // by the last command, not shown yet
	for i, line := range b.text {
		if command, ok := strings.CutPrefix(line, "$ "); ok {
			said = strings.Split(p.sh(t, b.line+i+1, command), "\n")
			continue
		}
		pattern := shownLine(line)
		at := 0
		for at < len(said) && !pattern.MatchString(said[at]) {
			at++
		}
		if at == len(said) {
			t.Fatalf("docs/tutorial.md:%d: no line %q in\n%s", b.line+i+1, line, strings.Join(said, "\n"))
		}
		said = said[at+1:]
	}
}

func (p *player) sh(t *testing.T, line int, command string) string {
	t.Helper()
	cmd := exec.Command("sh", "-c", command)
	cmd.Env, cmd.Dir = p.env, p.dir
	m := p.h.start(t, cmd)
	m.stdin.Close()
	if code := m.exit(t); code != 0 {
		t.Fatalf("docs/tutorial.md:%d: %s ends with %d:\n%s", line, command, code, m.output())
	}
	return m.output()
}

// useTerminal types the commands and keys of a block, and waits for its other
// lines to be shown.
func (p *player) useTerminal(t *testing.T, b tutorialBlock) {
	t.Helper()
	p.terminal.clear(t)
	for _, line := range b.text {
		if command, ok := strings.CutPrefix(line, "$ "); ok {
			p.terminal.types(t, command)
		} else if command, ok := strings.CutPrefix(line, "/ # "); ok { // the guest's prompt
			p.terminal.types(t, command)
		} else if key, ok := strings.CutPrefix(line, "ctrl-] "); ok {
			p.terminal.keys(t, "C-]", key)
		} else {
			p.terminal.shows(t, "(?m)"+shownLine(line).String())
		}
	}
}

// shownLine is what a line of output that the tutorial shows stands for: … is
// anything, also nothing.
func shownLine(line string) *regexp.Regexp {
	return regexp.MustCompile("^" + strings.ReplaceAll(regexp.QuoteMeta(line), "…", ".*") + " *$")
}
