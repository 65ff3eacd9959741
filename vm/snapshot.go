package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/vmrun/vmrun/images"
	"github.com/vmrun/vmrun/vm/qemu"
)

// Snapshot is a machine at a moment: its memory, its disks, and the plan by which
// it is launched again. It is a folder below the state folder.
type Snapshot struct {
	Version int       `json:"version"` // of this format
	Name    string    `json:"name"`    // DNS label
	VM      string    `json:"vm"`      // DNS label
	Created time.Time `json:"created"`
	QEMU    string    `json:"qemu"`             // version; only the same one reads the memory. "": there is no memory
	Program Base      `json:"program,omitzero"` // that QEMU was, while the machine ran
	CPU     string    `json:"cpu,omitempty"`    // of the host, where KVM ran the guest
	Paused  bool      `json:"paused,omitempty"`
	Plan    Plan      `json:"plan"` // with the addresses that the guest had

	CPUs    int           `json:"cpus,omitempty"` // that it had; 0: the plan's
	Devices []SavedDevice `json:"devices,omitempty"`

	Bases []Base `json:"bases,omitempty"` // images that the overlays are over
	Size  int64  `json:"size"`            // bytes that it takes on the disk

	dir string
}

// Base is a file that a snapshot needs as it was.
type Base struct {
	Path     string    `json:"path"`
	Size     int64     `json:"size"` // bytes of the file
	Modified time.Time `json:"modified"`
}

// Version 1 knows of no devices that came later.
const (
	snapshotVersion = 2
	snapshotFile    = "snapshot.json" // written last: a folder without it is no snapshot
	memoryFile      = "memory"
)

// A SnapshotError says why a snapshot can't be used.
type SnapshotError struct {
	VM, Name string
	Reason   string
}

func (e *SnapshotError) Error() string {
	return fmt.Sprintf("snapshot %s of %s: %s", e.Name, e.VM, e.Reason)
}

func (s *Snapshot) unusable(format string, args ...any) error {
	return &SnapshotError{VM: s.VM, Name: s.Name, Reason: fmt.Sprintf(format, args...)}
}

func snapshotsDir(h Host, vm string) string {
	return filepath.Join(h.Dirs.State, "vms", vm, "snapshots")
}

func diskFile(index int) string { return fmt.Sprintf("disk%d", index) }

// Snapshots lists a machine's snapshots, oldest first. What is not readable is
// in the error, and the rest is returned all the same.
func Snapshots(h Host, vm string) ([]*Snapshot, error) {
	entries, err := os.ReadDir(snapshotsDir(h, vm))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	var all []*Snapshot
	var errs []error
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), newSuffix) {
			continue // being made, or what a killed one left
		}
		s, err := LoadSnapshot(h, vm, e.Name())
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *Snapshot) int { return a.Created.Compare(b.Created) })
	return all, errors.Join(errs...)
}

// LoadSnapshot reads a snapshot. The error is a *SnapshotError where there is
// none of the name, or one of another version.
func LoadSnapshot(h Host, vm, name string) (*Snapshot, error) {
	s := &Snapshot{VM: vm, Name: name}
	dir := filepath.Join(snapshotsDir(h, vm), name)
	text, err := os.ReadFile(filepath.Join(dir, snapshotFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, s.unusable("there is none")
	}
	if err != nil {
		return nil, fmt.Errorf("load snapshot: %w", err)
	}
	if err := json.Unmarshal(text, s); err != nil {
		return nil, fmt.Errorf("load snapshot %s: %w", dir, err)
	}
	if s.Version < 1 || s.Version > snapshotVersion {
		return nil, s.unusable("it is of version %d of the format, and this vmrun knows those up to %d", s.Version, snapshotVersion)
	}
	if s.VM != vm || s.Name != name {
		return nil, fmt.Errorf("load snapshot %s: it is snapshot %s of %s", dir, s.Name, s.VM)
	}
	s.dir = dir
	return s, nil
}

// Remove removes a snapshot.
func (s *Snapshot) Remove() error {
	// Without this file what is left is no snapshot.
	err := os.Remove(filepath.Join(s.dir, snapshotFile))
	if err = errors.Join(err, os.RemoveAll(s.dir)); err != nil {
		return fmt.Errorf("remove snapshot %s of %s: %w", s.Name, s.VM, err)
	}
	return nil
}

// RestorePlan is the plan of a launch that goes on from a snapshot, on the machine
// type that it was made on. It is refused, by a *SnapshotError, where QEMU is of
// another version or something else is no longer as it was, by a *HostError where a
// file is gone, and by a *netsetup.ConflictError where others run a network by
// another definition: nothing is started then. Of a snapshot without memory it is
// the plan that the machine had, and only kept disks have to be there.
func (s *Snapshot) RestorePlan(ctx context.Context, h Host) (*Plan, error) {
	if !s.HasMemory() {
		return &s.Plan, s.checkKept()
	}
	version, err := s.versionOf(ctx, h.QEMU)
	switch {
	case err != nil:
		return nil, err
	case version != s.QEMU:
		return nil, s.unusable("it was made by QEMU %s, and this host has %s, which does not read its memory for sure", s.QEMU, version)
	case s.Plan.Accel == qemu.KVM && s.CPU != hostCPU():
		return nil, s.unusable("it was made on another CPU (%s)", s.CPU)
	}
	for _, b := range s.Bases {
		if now, err := newBase(b.Path); err != nil || now != b {
			return nil, s.unusable("image %s has changed since", b.Path)
		}
	}
	plan := s.Plan
	plan.Disks = slices.Clone(plan.Disks)
	for i := range plan.Disks {
		if !plan.Disks[i].Keep {
			plan.Disks[i].Overlay = filepath.Join(s.dir, diskFile(i))
		}
	}
	plan.Restore = &Restore{Memory: filepath.Join(s.dir, memoryFile), Paused: s.Paused, CPUs: s.CPUs}
	for i, d := range plan.Disks {
		if d.Keep {
			plan.Restore.Disks = append(plan.Restore.Disks, images.Replacement{Path: d.Path, Content: filepath.Join(s.dir, diskFile(i))})
		}
	}
	for _, d := range s.Devices {
		if d.Disk != nil && d.Disk.Keep {
			plan.Restore.Disks = append(plan.Restore.Disks, images.Replacement{Path: d.Disk.Path, Content: filepath.Join(s.dir, d.ID)})
		}
		plan.Restore.Devices = append(plan.Restore.Devices, d.withContent(s.dir))
	}
	if err := errors.Join(plan.checkFiles(), plan.checkDefinitions(ctx, h)); err != nil {
		return nil, fmt.Errorf("restore snapshot %s of %s: %w", s.Name, s.VM, err)
	}
	return &plan, nil
}

// checkKept looks whether the disks are there that a snapshot without memory gives
// their content back: of the rest nothing is started.
func (s *Snapshot) checkKept() error {
	var errs []error
	for _, d := range s.Plan.Disks {
		if d.Keep {
			errs = append(errs, checkDisk(d.Path, true))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("restore snapshot %s of %s: %w", s.Name, s.VM, err)
	}
	return nil
}

func newBase(path string) (Base, error) { return baseAt(path, path) }

// baseAt is the base of a path, whose file is looked at by way of another one.
func baseAt(path, by string) (Base, error) {
	fi, err := os.Stat(by)
	if err != nil {
		return Base{}, err
	}
	return Base{Path: path, Size: fi.Size(), Modified: fi.ModTime().UTC()}, nil
}

// versionOf is a QEMU's version. The program that made the snapshot need not be
// asked, which takes 20 ms.
func (s *Snapshot) versionOf(ctx context.Context, qemu string) (string, error) {
	if now, err := newBase(qemu); err == nil && now == s.Program {
		return s.QEMU, nil
	}
	return qemuVersion(ctx, qemu)
}

var versionText = regexp.MustCompile(`version (\d+\.\d+\.\d+)`)

// qemuVersion asks a QEMU what it is.
func qemuVersion(ctx context.Context, path string) (string, error) {
	if path == "" {
		return "", lacks(NeedQEMU, "find QEMU: no qemu-system-x86_64 in PATH")
	}
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("ask QEMU for its version: %w", err)
	}
	found := versionText.FindSubmatch(out)
	if found == nil {
		return "", fmt.Errorf("ask QEMU for its version: it says %.100q", out)
	}
	return string(found[1]), nil
}

// hostCPU identifies the host's CPU: a guest may not go on under KVM on one that
// lacks what it has seen.
func hostCPU() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	var model []string
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(key) {
		case "model name", "stepping", "microcode":
			model = append(model, strings.TrimSpace(value))
		case "":
			return strings.Join(model, ", ") // the first CPU's end
		}
	}
	return strings.Join(model, ", ")
}

// Restore is the part of a plan that has a machine go on from a snapshot.
type Restore struct {
	Memory string               `json:"memory"` // path
	Paused bool                 `json:"paused,omitempty"`
	Disks  []images.Replacement `json:"disks,omitempty"` // kept images, which get this content back

	CPUs    int           `json:"cpus,omitempty"`    // that the machine had; 0: the plan's
	Devices []SavedDevice `json:"devices,omitempty"` // that were attached
}

// putBackDisks gives kept images the content of the snapshot, and opens all. A
// network that refuses the machine has done so before: what was written since then
// is not lost to a restore that does not come about.
func (l *launch) putBackDisks(ctx context.Context) error {
	if l.plan.Restore == nil {
		return nil
	}
	if err := images.ReplaceAll(ctx, l.plan.Restore.Disks); err != nil {
		return err
	}
	return l.openAll(ctx)
}

// HasMemory tells whether the machine ran: else there is nothing to go on from but
// its disks.
func (s *Snapshot) HasMemory() bool { return s.QEMU != "" }

// RestoreDisks gives kept images the content of a snapshot, for a machine that
// does not run.
func (s *Snapshot) RestoreDisks(ctx context.Context) error {
	var all []images.Replacement
	for i, d := range s.Plan.Disks {
		if d.Keep {
			all = append(all, images.Replacement{Path: d.Path, Content: filepath.Join(s.dir, diskFile(i))})
		}
	}
	if err := images.ReplaceAll(ctx, all); err != nil {
		return fmt.Errorf("restore snapshot %s of %s: %w", s.Name, s.VM, err)
	}
	return nil
}

// SnapshotOwners names the machines that have snapshots.
func SnapshotOwners(h Host) []string {
	dirs, _ := filepath.Glob(snapshotsDir(h, "*"))
	var all []string
	for _, dir := range dirs {
		all = append(all, filepath.Base(filepath.Dir(dir)))
	}
	return all
}
