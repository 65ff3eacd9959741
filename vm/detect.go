package vm

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/images"
	"github.com/vmrun/vmrun/netsetup/firewall"
)

// DetectHost finds out about this machine. Executable is the vmrun binary that
// the launches re-execute; env is the caller's environment, as of os.Environ.
// What is not installed is left empty; an error is something that could not be
// found out.
func DetectHost(executable string, env []string) (Host, error) {
	h, err := LocateHost(executable, env)
	if err != nil {
		return Host{}, err
	}
	vars := environment(env)
	h.QEMU, h.QEMUImg = vars.look("qemu-system-x86_64"), vars.look("qemu-img")
	h.Busybox = staticBusybox(vars)
	h.KVM = detectDevice("/dev/kvm")
	h.LookupUser = lookupUser
	if h.User, err = detectUser(vars); err != nil {
		return Host{}, err
	}
	if id, err := os.ReadFile("/etc/machine-id"); err == nil {
		h.MachineID = strings.TrimSpace(string(id))
	}
	h.KernelDirs = kernelDirs(vars, h.Dirs.Cache)
	h.Kernel, err = images.FindKernel(h.KernelDirs...)
	if _, none := errors.AsType[*images.NoKernelError](err); err != nil && !none {
		return Host{}, err
	}
	return h, nil
}

// LocateHost is DetectHost without what only launches need: programs, kernels and
// users. It is enough to find machines and networks.
func LocateHost(executable string, env []string) (Host, error) {
	vars := environment(env)
	h := Host{
		Executable: executable,
		EUID:       os.Geteuid(),
		Privileged: hasNetAdmin(),
		Firewall:   vars.get("VMRUN_FIREWALL"),
	}
	if _, err := firewall.ParseWish(h.Firewall); err != nil {
		return Host{}, fmt.Errorf("read VMRUN_FIREWALL: %w", err)
	}
	var err error
	if h.Dirs, err = detectDirs(vars); err != nil {
		return Host{}, err
	}
	if h.Privileged {
		h.Dirs.RootRuntime = "" // it sets its own up
	}
	return h, nil
}

// kernelDirs is where kernels for guests are looked for. An ordinary user may
// boot what root has unpacked for everybody.
func kernelDirs(vars environment, cache string) []string {
	const everybodys = "/var/cache/vmrun/kernel/boot"
	dirs := []string{"/boot", filepath.Join(cache, "kernel/boot")}
	if vars.get("VMRUN_CACHE_DIR") == "" && !slices.Contains(dirs, everybodys) {
		dirs = append(dirs, everybodys)
	}
	return dirs
}

// environment is an environment as os.Environ has it.
type environment []string

// get returns the last value of a variable, as a shell would see it.
func (e environment) get(name string) string {
	value := ""
	for _, entry := range e {
		if v, ok := strings.CutPrefix(entry, name+"="); ok {
			value = v
		}
	}
	return value
}

// look finds a program in PATH and, since users of sudo may have a short one,
// in the usual places.
func (e environment) look(program string) string {
	dirs := append(filepath.SplitList(e.get("PATH")), "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin")
	for _, dir := range dirs {
		if !filepath.IsAbs(dir) {
			continue
		}
		if path, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return path
		}
	}
	return ""
}

// staticBusybox finds a busybox that runs without libraries.
func staticBusybox(vars environment) string {
	path := vars.look("busybox")
	if path == "" || !isStatic(path) {
		return ""
	}
	return path
}

// isStatic tells whether a program does without a dynamic linker.
func isStatic(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return !slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
}

// detectDirs finds vmrun's folders. Root is who owns the system's folders: in
// a user namespace that is not necessarily user 0.
func detectDirs(vars environment) (Dirs, error) {
	uid := os.Getuid()
	dirs := Dirs{Runtime: "/run/vmrun", RootRuntime: "/run/vmrun", State: "/var/lib/vmrun", Cache: "/var/cache/vmrun"}
	if !owned("/run") || !owned("/var/lib") {
		home := vars.get("HOME")
		dirs.State = below(vars.get("XDG_STATE_HOME"), filepath.Join(home, ".local/state"))
		dirs.Cache = below(vars.get("XDG_CACHE_HOME"), filepath.Join(home, ".cache"))
		dirs.Runtime = below(vars.get("XDG_RUNTIME_DIR"), fmt.Sprintf("/run/user/%d", uid))
		if !owned(filepath.Dir(dirs.Runtime)) {
			dirs.Runtime = fmt.Sprintf("/tmp/vmrun-%d", uid)
		}
	}
	for name, dir := range map[string]*string{
		"VMRUN_RUNTIME_DIR": &dirs.Runtime, "VMRUN_STATE_DIR": &dirs.State, "VMRUN_CACHE_DIR": &dirs.Cache,
		"VMRUN_ROOT_RUNTIME_DIR": &dirs.RootRuntime,
	} {
		if value := vars.get(name); value != "" {
			*dir = value
		}
		if !filepath.IsAbs(*dir) {
			return Dirs{}, fmt.Errorf("use folder %q: not an absolute path (set %s, or HOME)", *dir, name)
		}
	}
	return dirs, dirs.checkApart()
}

// checkApart refuses folders for running and for kept state where one would take
// the other's for its own: a VM's next run would remove what was kept of it.
func (d Dirs) checkApart() error {
	runtime, state := resolved(d.Runtime), resolved(d.State)
	const apart = "what is kept of a VM would be lost: set VMRUN_RUNTIME_DIR or VMRUN_STATE_DIR to another folder"
	if runtime == state {
		return fmt.Errorf("use folder %s for running and for kept state: %s", d.Runtime, apart)
	}
	for inner, outer := range map[string]string{runtime: state, state: runtime} {
		rest, err := filepath.Rel(outer, inner)
		first, _, _ := strings.Cut(rest, "/")
		if err == nil && slices.Contains(ownFolders, first) {
			return fmt.Errorf("use folders %s for running and %s for kept state: one is among the other's own: %s", d.Runtime, d.State, apart)
		}
	}
	return nil
}

// ownFolders are those that vmrun has in its folders, with what it finds there
// for its own.
var ownFolders = []string{"vms", "nets", "host", "leases"}

// resolved is a path without symbolic links, as far as it is there.
func resolved(path string) string {
	path = filepath.Clean(path)
	if real, err := filepath.EvalSymlinks(path); err == nil || path == "/" {
		return real
	}
	return filepath.Join(resolved(filepath.Dir(path)), filepath.Base(path))
}

func below(dir, fallback string) string {
	if dir == "" {
		dir = fallback
	}
	return filepath.Join(dir, "vmrun")
}

// owned tells whether a folder is this process's and can be written to.
func owned(dir string) bool {
	fi, err := os.Lstat(dir)
	return err == nil && fi.IsDir() && int(fi.Sys().(*syscall.Stat_t).Uid) == os.Geteuid() && unix.Access(dir, unix.W_OK) == nil
}

// detectUser is the invoking user: behind sudo the one who called it.
func detectUser(vars environment) (User, error) {
	uid := strconv.Itoa(os.Geteuid())
	if sudo := vars.get("SUDO_UID"); os.Geteuid() == 0 && sudo != "" {
		uid = sudo
	}
	u, err := user.LookupId(uid)
	if _, unknown := errors.AsType[user.UnknownUserIdError](err); unknown {
		return numericUser(uid, vars)
	}
	if err != nil {
		return User{}, fmt.Errorf("look up user %s: %w", uid, err)
	}
	return resolveUser(u)
}

// numericUser is a user that the host's files don't know, as in containers.
func numericUser(uid string, vars environment) (User, error) {
	id, err := strconv.ParseUint(uid, 10, 32)
	if err != nil {
		return User{}, fmt.Errorf("parse SUDO_UID: %w", err)
	}
	gid := uint64(os.Getegid())
	if sudo := vars.get("SUDO_GID"); os.Geteuid() == 0 && sudo != "" {
		if gid, err = strconv.ParseUint(sudo, 10, 32); err != nil {
			return User{}, fmt.Errorf("parse SUDO_GID: %w", err)
		}
	}
	return User{Name: uid, UID: uint32(id), GID: uint32(gid)}, nil
}

func lookupUser(name string) (User, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return User{}, err
	}
	return resolveUser(u)
}

// resolveUser adds the groups to a user.
func resolveUser(u *user.User) (User, error) {
	texts, err := u.GroupIds()
	if err != nil {
		return User{}, fmt.Errorf("look up groups of user %s: %w", u.Username, err)
	}
	var ids []uint32
	for _, text := range append([]string{u.Uid, u.Gid}, texts...) {
		id, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return User{}, fmt.Errorf("look up user %s: %w", u.Username, err)
		}
		ids = append(ids, uint32(id))
	}
	return User{Name: u.Username, UID: ids[0], GID: ids[1], Groups: ids[2:]}, nil
}

func detectDevice(path string) Device {
	fi, err := os.Stat(path)
	if err != nil || fi.Mode()&fs.ModeCharDevice == 0 {
		return Device{}
	}
	st := fi.Sys().(*syscall.Stat_t)
	return Device{Path: path, UID: st.Uid, GID: st.Gid, Mode: fi.Mode()}
}

// hasNetAdmin tells whether this process may change the host's network.
func hasNetAdmin() bool {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_NET_ADMIN) != 0
}
