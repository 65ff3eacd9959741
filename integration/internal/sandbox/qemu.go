package sandbox

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/guest"
)

// sharer serves a folder to a guest as a virtiofs (Debian's qemu-system-common).
const sharer = "/usr/lib/qemu/virtiofsd"

// RunQEMU is Run under the guests' kernel, see feature.Kernel, in an emulated
// machine, on this machine's own file system. It has what Debian's kernels have,
// and takes about thirty times as long.
func RunQEMU(t *testing.T, body func(t *testing.T)) {
	t.Helper()
	kernel{"virtiofsd", qemuMissing, qemuCommand}.run(t, body)
}

func qemuMissing() error {
	if os.Geteuid() != 0 {
		return errors.New("share the root folder: only root can")
	}
	for _, name := range []string{"qemu-system-x86_64", "busybox", modprobe, sharer} {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("emulate a machine: %w", err)
		}
	}
	_, err := feature.Kernel()
	return err
}

//go:embed share.sh
var shareScript string

func qemuCommand(ctx context.Context, t *testing.T, binary string) (*exec.Cmd, error) {
	debian, err := feature.Kernel()
	if err != nil {
		return nil, err
	}
	words, err := bootWords(t, job{Slowness: 30, Modules: filepath.Dir(debian.Modules)}, binary)
	if err != nil {
		return nil, err
	}
	initrd := filepath.Join(t.TempDir(), "initrd")
	start := guest.Initramfs{Init: shareScript, Drivers: []string{"virtio_pci", "virtiofs"}}
	if err := start.Write(initrd); err != nil {
		return nil, err
	}
	socket, err := shareRoot(t)
	if err != nil {
		return nil, err
	}
	return exec.CommandContext(ctx, "qemu-system-x86_64",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "pc,accel=tcg,memory-backend=memory", "-cpu", "qemu64", "-smp", "2", "-m", "2G",
		"-object", "memory-backend-memfd,id=memory,size=2G,share=on", // which virtiofsd maps
		"-chardev", "socket,id=root,path="+socket, "-device", "vhost-user-fs-pci,chardev=root,tag=root",
		"-serial", "stdio", "-kernel", debian.Image, "-initrd", initrd,
		"-append", "console=ttyS0 no_timer_check panic=-1 "+strings.Join(words, " "),
	), nil
}

// shareRoot serves this machine's root folder for one guest and returns the
// socket, in a folder of its own since its path has a short limit.
func shareRoot(t *testing.T) (socket string, err error) {
	dir, err := os.MkdirTemp("", "vmrun-share-")
	if err != nil {
		return "", fmt.Errorf("share root folder: %w", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket = filepath.Join(dir, "socket")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return "", fmt.Errorf("share root folder: %w", err)
	}
	defer listener.Close()
	listener.SetUnlinkOnClose(false) // virtiofsd listens on
	file, err := listener.File()
	if err != nil {
		return "", fmt.Errorf("share root folder: %w", err)
	}
	defer file.Close()
	cmd := exec.CommandContext(t.Context(), sharer, "--fd=3", "-o", "sandbox=chroot,source=/,cache=always,log_level=err")
	cmd.ExtraFiles = []*os.File{file}
	var told bytes.Buffer
	cmd.Stderr, cmd.WaitDelay = &told, time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("share root folder: %w", err)
	}
	t.Cleanup(func() {
		err := cmd.Wait() // it ends when its guest has, or with the test
		if t.Failed() {
			t.Logf("%s: %v\n%s", sharer, err, told.Bytes())
		}
	})
	return socket, nil
}
