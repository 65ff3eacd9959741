// Package feature finds out by doing what the machine under a test can.
package feature

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// mustVariable lists, with commas, the features whose absence is a failure, not
// a skip; "all" is every feature.
const mustVariable = "VMRUN_TEST_MUST"

// probes try each feature in the network and as the user of the test.
var probes = map[string]func() error{
	"tun":          tun,
	"qemu":         runs("qemu-system-x86_64", "--version"),
	"qemu-img":     runs("qemu-img", "--version"),
	"kernel":       func() error { _, err := Kernel(); return err },
	"busybox":      busybox,
	"iptables":     runs("iptables", "-t", "nat", "-S"),
	"ipxe":         ipxe,
	"br_netfilter": func() error { _, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables"); return err },
	"dnsmasq":      runs("dnsmasq", "--version"),
	"libvirt":      libvirt,
	"daemons":      unpacked("daemons/usr/sbin/NetworkManager", "daemons/etc/ufw"),
	"docker":       unpacked("docker/usr/sbin/dockerd"),
	"dhclient":     runs("dhclient", "--version"),
	"udhcpc":       program("udhcpc"),
	"tmux":         runs("tmux", "-V"),
	"curl":         program("curl"),
	"tcpdump":      runs("tcpdump", "--version"),
	"syslinux":     runs("syslinux", "--version"),
	"mtools":       program("mcopy"),
	"mkfs.fat":     program("mkfs.fat"),
	"users":        users,
	"nextpid":      nextPID,
	"perfdhcp":     runs("perfdhcp", "-v"),
	"nftables":     runs("nft", "--check", "add table ip probe { chain c { type nat hook postrouting priority 0; }; }"),
}

// Needs skips the test where the machine lacks one of the features, and fails
// it where that one is listed in VMRUN_TEST_MUST.
func Needs(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		probe, ok := probes[name]
		if !ok {
			t.Fatalf("no such feature: %s", name)
		}
		if err := probe(); err != nil {
			Missing(t, name, err)
		}
	}
}

// Missing skips the test for the lack of a feature, or fails it as Needs does.
func Missing(t *testing.T, name string, err error) {
	t.Helper()
	must := strings.Split(os.Getenv(mustVariable), ",")
	if slices.Contains(must, name) || slices.Contains(must, "all") {
		t.Fatalf("needs %s, as %s demands: %v", name, mustVariable, err)
	}
	t.Skipf("needs %s: %v", name, err)
}

// GuestKernel is a kernel for guests and where its modules are.
type GuestKernel struct {
	Image   string
	Version string
	Modules string // the folder that holds modules.dep
}

// Kernel finds the newest kernel for guests: the machine's own, or what
// scripts/setup unpacked.
func Kernel() (GuestKernel, error) {
	for _, root := range []string{filepath.Join(cacheFolder(), "kernel"), "/"} {
		images, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
		if err != nil {
			return GuestKernel{}, err
		}
		for _, image := range slices.Backward(images) {
			version := strings.TrimPrefix(filepath.Base(image), "vmlinuz-")
			k := GuestKernel{Image: image, Version: version, Modules: filepath.Join(root, "lib/modules", version)}
			if _, err := os.Stat(filepath.Join(k.Modules, "modules.dep")); err == nil {
				return k, nil
			}
		}
	}
	return GuestKernel{}, errors.New("find kernel: run scripts/setup test")
}

// cacheFolder is where scripts/setup unpacks.
func cacheFolder() string {
	if cache := os.Getenv("VMRUN_CACHE_DIR"); cache != "" {
		return cache
	}
	return "/var/cache/vmrun"
}

func program(name string) func() error {
	return func() error {
		_, err := exec.LookPath(name)
		return err
	}
}

func runs(name string, args ...string) func() error {
	return func() error {
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("run %s: %w: %s", name, err, strings.TrimSpace(string(out)))
		}
		return nil
	}
}

// busybox must be static, since it runs in guests that have nothing else.
func busybox() error {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	file, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	defer file.Close()
	for _, p := range file.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is not static", path)
		}
	}
	return nil
}

// libvirt is the daemon with its driver for networks, and the shell for it.
func libvirt() error {
	return errors.Join(runs("libvirtd", "--version")(), runs("virsh", "--version")())
}

// unpacked are files that scripts/setup unpacks without installing them.
func unpacked(files ...string) func() error {
	return func() error {
		for _, file := range files {
			if _, err := os.Stat(filepath.Join(cacheFolder(), file)); err != nil {
				return err
			}
		}
		return nil
	}
}

func ipxe() error {
	for _, dir := range []string{"/usr/lib/ipxe/qemu", "/usr/share/qemu"} {
		if _, err := os.Stat(filepath.Join(dir, "pxe-virtio.rom")); err == nil {
			return nil
		}
	}
	return errors.New("find iPXE for virtio-net: not installed")
}
