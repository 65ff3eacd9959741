package vm

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPermits(t *testing.T) {
	alice := User{UID: 1000, GID: 1000, Groups: []uint32{105}}
	for _, test := range []struct {
		mode     fs.FileMode
		uid, gid uint32
		want     bool
	}{
		{0o600, 1000, 0, true},
		{0o066, 1000, 0, false}, // the owner's digit counts alone
		{0o060, 0, 1000, true},
		{0o060, 0, 105, true},
		{0o606, 0, 105, false}, // and so does the group's
		{0o660, 0, 106, false},
		{0o666, 0, 0, true},
		{0o664, 0, 0, false},
	} {
		if got := permits(test.mode, test.uid, test.gid, alice, readWrite); got != test.want {
			t.Errorf("%04o of %d:%d: %v, want %v", test.mode, test.uid, test.gid, got, test.want)
		}
	}
}

// QEMU's user gets into the group of /dev/kvm, but never into root's.
func TestKVMGroup(t *testing.T) {
	h := sampleHost()
	for gid, want := range map[uint32][]uint32{105: {27, 105}, 27: {27}, 0: {27}} {
		h.KVM.GID = gid
		if diff := cmp.Diff(want, h.runAs(h.User).Groups); diff != "" {
			t.Errorf("group %d (-want +got):\n%s", gid, diff)
		}
	}
	h.EUID, h.KVM.GID = 1000, 105
	if diff := cmp.Diff([]uint32{27}, h.runAs(h.User).Groups); diff != "" {
		t.Errorf("not root (-want +got):\n%s", diff)
	}
}

// A file counts as readable only if each folder on its way lets the user through.
func TestReadableBy(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "kernel")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	owner := User{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
	for _, test := range []struct {
		dir, file fs.FileMode
		user      User
		want      bool
	}{
		{0o711, 0o644, User{UID: 4711, GID: 4711}, true},
		{0o700, 0o644, User{UID: 4711, GID: 4711}, false},
		{0o711, 0o600, User{UID: 4711, GID: 4711}, false},
		{0o711, 0o640, User{UID: 4711, GID: owner.GID}, true},
		{0o700, 0o600, owner, true},
	} {
		for path, mode := range map[string]fs.FileMode{dir: test.dir, file: test.file, filepath.Dir(dir): 0o755} {
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := readableBy(test.user, file); got != test.want || err != nil {
			t.Errorf("folder %04o, file %04o, user %d: %v (%v), want %v", test.dir, test.file, test.user.UID, got, err, test.want)
		}
	}
}

func TestDetectHost(t *testing.T) {
	bin, base := t.TempDir(), t.TempDir()
	for _, program := range []string{"qemu-system-x86_64", "qemu-img"} {
		if err := os.WriteFile(filepath.Join(bin, program), []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	env := []string{
		"PATH=relative:" + bin, "HOME=" + base, "SUDO_UID=4711", "SUDO_GID=4712",
		"VMRUN_RUNTIME_DIR=/overridden", "VMRUN_RUNTIME_DIR=" + base + "/run", "VMRUN_STATE_DIR=" + base + "/state", "VMRUN_CACHE_DIR=" + base + "/cache",
	}
	h, err := DetectHost("/usr/bin/vmrun", env)
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(bin, "qemu-system-x86_64"); h.QEMU != want {
		t.Errorf("QEMU is %s, want %s", h.QEMU, want)
	}
	if diff := cmp.Diff(Dirs{Runtime: base + "/run", State: base + "/state", Cache: base + "/cache"}, h.Dirs); diff != "" {
		t.Errorf("folders (-want +got):\n%s", diff)
	}
	if want := (User{Name: "4711", UID: 4711, GID: 4712}); os.Geteuid() == 0 && !cmp.Equal(want, h.User) {
		t.Errorf("behind sudo the user is %+v, want %+v", h.User, want)
	}
	if h.KernelDirs[0] != "/boot" || h.EUID != os.Geteuid() {
		t.Errorf("host is %+v", h)
	}
	if h, err := DetectHost("/usr/bin/vmrun", append(env, "VMRUN_FIREWALL=iptables")); err != nil || h.Firewall != "iptables" {
		t.Errorf("firewall %q, error %v", h.Firewall, err)
	}
	if _, err := DetectHost("/usr/bin/vmrun", append(env, "VMRUN_FIREWALL=ipfw")); err == nil || !strings.Contains(err.Error(), `VMRUN_FIREWALL: choose firewall: "ipfw" is none of`) {
		t.Errorf("an unknown firewall: error %v", err)
	}
	_, err = DetectHost("/usr/bin/vmrun", []string{"VMRUN_STATE_DIR=state"})
	if err == nil || !strings.Contains(err.Error(), `use folder "state": not an absolute path`) {
		t.Errorf("a relative folder: %v", err)
	}
}

// Folders of which one would take the other's content for its own are refused.
func TestFoldersApart(t *testing.T) {
	base := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(base, "real"), 0o700), os.Symlink("real", filepath.Join(base, "link"))); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		runtime, state string
		want           string // of the error; "": none
	}{
		{"run", "state", ""},
		{"real/run", "real/run-state", ""},
		{"real", "real/state", ""},
		{"real/run", "real", ""},
		{"same", "same", "for running and for kept state: what is kept of a VM would be lost"},
		{"same", "./x/../same/", "would be lost"},
		{"real/new", "link/new", "would be lost"},
		{"real", "link/vms", "among the other's own"},
		{"state/vms/web", "state", "among the other's own"},
		{"run", "run/nets/deep/er", "among the other's own"},
	} {
		err := Dirs{Runtime: filepath.Join(base, tt.runtime), State: base + "/" + tt.state}.checkApart()
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s and %s: %v, want %q", tt.runtime, tt.state, err, tt.want)
		}
	}
	_, err := DetectHost("/usr/bin/vmrun", []string{"HOME=" + base, "VMRUN_RUNTIME_DIR=" + base, "VMRUN_STATE_DIR=" + base})
	if err == nil || !strings.Contains(err.Error(), "set VMRUN_RUNTIME_DIR or VMRUN_STATE_DIR") {
		t.Errorf("the same folder: %v", err)
	}
}

// Root's kernels serve everybody, unless the cache is chosen.
func TestKernelDirs(t *testing.T) {
	for _, tt := range []struct {
		env  environment
		want []string
	}{
		{nil, []string{"/boot", "/home/me/.cache/vmrun/kernel/boot", "/var/cache/vmrun/kernel/boot"}},
		{environment{"VMRUN_CACHE_DIR=/home/me/.cache/vmrun"}, []string{"/boot", "/home/me/.cache/vmrun/kernel/boot"}},
	} {
		if diff := cmp.Diff(tt.want, kernelDirs(tt.env, "/home/me/.cache/vmrun")); diff != "" {
			t.Errorf("%v (-want +got):\n%s", tt.env, diff)
		}
	}
}

// A runtime folder that somebody else could have made is not used.
func TestMakeFolders(t *testing.T) {
	base := t.TempDir()
	link, open, good := filepath.Join(base, "link"), filepath.Join(base, "open"), filepath.Join(base, "a/b")
	if err := os.Symlink(base, link); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(open, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	for root, want := range map[string]bool{link: false, open: false, good: true} {
		if err := makeFolders(root, filepath.Join(root, "vms/web")); (err == nil) != want {
			t.Errorf("%s: %v", root, err)
		}
	}
}
