package vm

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/vmrun/vmrun/netsetup"
	"github.com/vmrun/vmrun/profiles"
)

// Check looks whether this process has the privilege that a plan needs, whether
// its files are there and may be read, and whether the host's ports that it
// forwards are free. It changes nothing. What it finds is a *HostError, or
// several joined. Launch begins with it. Where a machine of the plan's name was
// just killed, it waits until that is gone, some seconds at most.
func (plan *Plan) Check(ctx context.Context, h Host) error {
	awaitKilled(ctx, h, plan.Name)
	var errs []error
	for _, what := range plan.NeedsRoot {
		errs = append(errs, lacks(NeedPrivilege, "%s", what))
	}
	errs = append(errs, plan.checkFiles())
	for _, nic := range plan.NICs {
		for _, f := range nic.Forwards {
			errs = append(errs, checkPort(f))
		}
	}
	return errors.Join(errs...)
}

// checkFiles is the part of Check that looks at files.
func (plan *Plan) checkFiles() error {
	var errs []error
	for _, file := range []string{plan.Kernel, plan.Initrd} {
		if file != "" {
			errs = append(errs, checkFile(file))
		}
	}
	for _, d := range plan.Disks {
		errs = append(errs, checkDisk(d.Path, d.Keep))
	}
	if plan.Restore != nil {
		for _, d := range plan.Restore.Devices {
			if d.Disk != nil {
				errs = append(errs, checkDisk(d.Disk.Path, d.Disk.Keep))
			}
		}
	}
	return errors.Join(errs...)
}

// checkDefinitions looks whether the networks of a plan that restores a snapshot run
// by another definition, and will do so when the machine of its name has ended.
func (plan *Plan) checkDefinitions(ctx context.Context, h Host) error {
	nics := slices.Clone(plan.NICs)
	for _, d := range plan.Restore.Devices {
		if d.NIC != nil {
			nics = append(nics, *d.NIC)
		}
	}
	var errs []error
	checked := map[string]bool{}
	for _, nic := range nics {
		if nic.Spec != nil && !checked[nic.Spec.ID()] {
			checked[nic.Spec.ID()] = true
			errs = append(errs, netsetup.CheckDefinition(ctx, h.NetworkHost(), *nic.Spec, plan.Name))
		}
	}
	return errors.Join(errs...)
}

// checkFile finds out whether a kernel or an initrd can be read. It is not
// opened before it is known to be a file: a FIFO would wait for its writer.
func checkFile(path string) error {
	fi, err := os.Stat(path)
	if err != nil {
		return &HostError{NeedFile, err}
	}
	if !fi.Mode().IsRegular() {
		return lacks(NeedFile, "open %s: not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return &HostError{NeedFile, err}
	}
	return f.Close()
}

func checkDisk(path string, write bool) error {
	fi, err := os.Stat(path)
	if err != nil {
		return &HostError{NeedFile, err}
	}
	if !fi.Mode().IsRegular() && fi.Mode().Type() != fs.ModeDevice {
		return lacks(NeedFile, "open %s: neither a file nor a block device", path)
	}
	flags := os.O_RDONLY
	if write {
		flags = os.O_RDWR
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return &HostError{NeedFile, err}
	}
	return f.Close()
}

// checkPort finds out whether a port of the host can be listened at.
func checkPort(f profiles.Forward) error {
	if f.Proto == "udp" {
		c, err := listenUDP(f)
		if err != nil {
			return err
		}
		return c.Close()
	}
	l, err := listenTCP(f)
	if err != nil {
		return err
	}
	return l.Close()
}

// readableBy tells whether a user may open a file for reading, going by the
// modes of the file and of the folders that lead to it. The path is absolute
// and without links.
func readableBy(u User, path string) (bool, error) {
	if u.UID == 0 {
		return true, nil
	}
	const read, search = 0o4, 0o1
	for want := fs.FileMode(read); ; want = search {
		fi, err := os.Stat(path)
		if err != nil {
			return false, err
		}
		st := fi.Sys().(*syscall.Stat_t)
		if !permits(fi.Mode(), st.Uid, st.Gid, u, want) {
			return false, nil
		}
		if path == filepath.Dir(path) {
			return true, nil
		}
		path = filepath.Dir(path)
	}
}
