package sandbox

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const (
	umlKernel  = "linux.uml"
	umlModules = "/usr/lib/uml/modules"
	compiler   = "gcc" // of preload/xstate.c
)

// RunUML is Run under User-Mode Linux, on this machine's own file system, where all
// takes about seven times as long. It needs Debian's packages user-mode-linux, kmod,
// gcc and libc6-dev.
func RunUML(t *testing.T, body func(t *testing.T)) {
	t.Helper()
	if os.Getenv(roleVariable) == "" && raceDetector {
		t.Skip("the race detector does not run under User-Mode Linux")
	}
	kernel{"uml", umlMissing, umlCommand}.run(t, body)
}

func umlMissing() error {
	for _, name := range []string{umlKernel, modprobe, compiler} {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("find User-Mode Linux: %w", err)
		}
	}
	if found, _ := filepath.Glob(umlModules + "/*/kernel"); len(found) == 0 {
		return fmt.Errorf("find User-Mode Linux: no modules below %s", umlModules)
	}
	return nil
}

func umlCommand(ctx context.Context, t *testing.T, binary string) (*exec.Cmd, error) {
	words, err := bootWords(t, job{Slowness: 7, Modules: umlModules, Legacy: true})
	if err != nil {
		return nil, err
	}
	preload, err := compilePreload(t)
	if err != nil {
		return nil, err
	}
	args := []string{
		"mem=2G", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro",
		"con0=null,fd:1", "con=null", "uml_dir=" + t.TempDir() + "/", "init=" + binary,
	}
	cmd := exec.CommandContext(ctx, umlKernel, append(args, words...)...)
	cmd.Env = append(os.Environ(), "LD_PRELOAD="+preload)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it ends its own children then
	return cmd, nil
}

//go:embed preload/xstate.c
var xstate string

// compilePreload makes a library of preload/xstate.c.
func compilePreload(t *testing.T) (path string, err error) {
	path = filepath.Join(t.TempDir(), "xstate.so")
	cmd := exec.Command(compiler, "-O2", "-shared", "-fPIC", "-o", path, "-x", "c", "-")
	cmd.Stdin = strings.NewReader(xstate)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("compile preload/xstate.c: %w: %s", err, out)
	}
	return path, nil
}

// chooseLegacy makes the legacy tools the host's iptables, as an administrator
// of such a kernel would: its nftables can't translate addresses.
func chooseLegacy() error {
	for _, name := range []string{"iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"} {
		family, action, _ := strings.Cut(name, "-")
		target := "/usr/sbin/" + strings.TrimSuffix(family+"-legacy-"+action, "-")
		if _, err := os.Stat(target); err != nil {
			continue
		}
		alternative := "/etc/alternatives/" + name
		if err := os.Remove(alternative); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("choose iptables: %w", err)
		}
		if err := os.Symlink(target, alternative); err != nil {
			return fmt.Errorf("choose iptables: %w", err)
		}
	}
	return nil
}
