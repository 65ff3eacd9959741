package vm

import (
	"fmt"
	"io/fs"
	"log/slog"
	"slices"

	"github.com/vmrun/vmrun/netsetup"
)

// Host is all that vm takes from the machine that it runs on. DetectHost finds
// it out, and LocateHost as much as it takes to find machines and networks: neither
// plans nor launches come from that. Tests and other programs may fill it in as they
// like. But for its
// functions it can be written as JSON, for another process to launch a plan.
type Host struct {
	Executable string   // a static vmrun binary: re-executed as keeper, and the micro guest's init
	QEMU       string   // path of qemu-system-x86_64; "": not installed
	QEMUImg    string   // path of qemu-img; "": not installed
	Busybox    string   // path of a static busybox; "": the micro guest has no shell
	Kernel     string   // what boot.kernel = "auto" stands for; "": none found
	KernelDirs []string // where Kernel was looked for
	Dirs       Dirs
	EUID       int    // of this process
	Privileged bool   // this process may change the host's network
	User       User   // whose virtual machines these are: the invoking user
	KVM        Device // /dev/kvm
	MachineID  string // of /etc/machine-id; "": unknown
	Firewall   string // what firewall = "auto" stands for; "" or "auto": what suits the host

	Version string // of Executable, for messages

	// CheckOpened tells whether root has opened a network to this process; nil:
	// netsetup.CheckOpened does.
	CheckOpened func(netsetup.Spec) error `json:"-"`
	// LookupUser finds the user that a profile names.
	LookupUser func(name string) (User, error) `json:"-"`
	// Log gets warnings and what is worth a line; nil: nothing is logged.
	Log *slog.Logger `json:"-"`
}

// Dirs are vmrun's folders. They are made when they are needed.
type Dirs struct {
	Runtime string // running state, gone after a reboot
	State   string // what survives a reboot
	Cache   string // what can be made again

	// RootRuntime is root's Runtime, where a process without privilege looks for
	// networks that root has opened to a group; "": this one has the privilege.
	RootRuntime string
}

// User is a user of the host with the groups that count.
type User struct {
	Name   string   `json:"name"`
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups,omitempty"` // supplementary
}

// Device is a device file: who may open it. The zero value is no device.
type Device struct {
	Path string
	UID  uint32
	GID  uint32
	Mode fs.FileMode
}

// Need is a kind of thing that a launch needs of the host.
type Need string

const (
	NeedQEMU      Need = "qemu"
	NeedQEMUImg   Need = "qemu-img"
	NeedPrivilege Need = "privilege"
	NeedKVM       Need = "kvm"
	NeedUser      Need = "user"
	NeedKernel    Need = "kernel"
	NeedFile      Need = "file"
	NeedPort      Need = "port"
	NeedName      Need = "name"
	NeedRemoval   Need = "removal" // of a kept machine of the name
)

// HostError says that a profile is good but the host lacks something for it.
type HostError struct {
	Need Need
	Err  error
}

func (e *HostError) Error() string { return e.Err.Error() }

func (e *HostError) Unwrap() error { return e.Err }

func lacks(need Need, format string, args ...any) error {
	return &HostError{Need: need, Err: fmt.Errorf(format, args...)}
}

func (h Host) log() *slog.Logger {
	if h.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return h.Log
}

// runAs is the user with the groups that its QEMU gets: where this process can
// give them away also the group that KVM is for.
func (h Host) runAs(u User) User {
	if h.EUID != 0 || !h.KVM.forGroup() || u.UID == 0 || slices.Contains(u.Groups, h.KVM.GID) {
		return u
	}
	u.Groups = append(slices.Clone(u.Groups), h.KVM.GID)
	return u
}

const readWrite = 0o6

func (d Device) exists() bool { return d.Path != "" }

// forGroup tells whether the device's group, other than root's, may use it.
func (d Device) forGroup() bool {
	return d.exists() && d.GID != 0 && d.Mode.Perm()>>3&readWrite == readWrite
}

// usableBy tells whether a user may open the device for reading and writing,
// going by its mode.
func (d Device) usableBy(u User) bool {
	return d.exists() && (u.UID == 0 || permits(d.Mode, d.UID, d.GID, u, readWrite))
}

// permits is the kernel's check of a file's mode for one who is not root; want
// is made of the bits of one of the mode's three digits.
func permits(mode fs.FileMode, uid, gid uint32, u User, want fs.FileMode) bool {
	perm := mode.Perm()
	switch {
	case uid == u.UID:
		perm >>= 6
	case gid == u.GID || slices.Contains(u.Groups, gid):
		perm >>= 3
	}
	return perm&want == want
}
