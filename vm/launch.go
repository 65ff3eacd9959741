package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/images"
	"github.com/vmrun/vmrun/netsetup"
	"github.com/vmrun/vmrun/vm/qemu"
)

// Options are what a launch can do differently.
type Options struct {
	Paused bool // the guest waits for the QMP command cont
	Keep   bool // the machine's state and logs outlive it, until Remove

	attach  attachFunc              // nil: netsetup.Attach
	micro   microFunc               // nil: images.PrepareMicro
	watch   watchFunc               // nil: watchTAP
	inspect inspectFunc             // nil: netsetup.Inspect
	before  func(step string) error // called before each step, which it can prevent; nil: nothing is called
}

// Launch carries out a plan and returns the running virtual machine, which the
// caller closes. Where it fails nothing is left of it but the logs. The context
// is for the launch alone: the machine goes on when it ends.
//
// What the host lacks is told by a *HostError in the error's tree, a QEMU that
// did not start by a *StartError.
func Launch(ctx context.Context, plan *Plan, h Host, o Options) (_ *Instance, err error) {
	l := &launch{plan: plan, host: h, options: o}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("launch %s: %w", plan.Name, err), l.undo.run())
		}
	}()
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"check", l.check},           // what can be seen without touching anything
		{"claim", l.claimName},       // one machine of a name at a time
		{"disks", l.openDisks},       // open images, with overlays that have no name
		{"boot", l.prepareBoot},      // the micro guest; kernel and initrd as QEMU's user can read them
		{"networks", l.joinNetworks}, // an open TAP for each NIC
		{"forwards", l.forwardPorts}, // ports of the host that lead to the guest
		{"contents", l.putBackDisks}, // of kept images, where a snapshot is restored
		{"start", l.startQEMU},       // a paused QEMU that answers
		{"watch", l.watchGuest},      // whatever QEMU and the guest tell
		{"restore", l.loadMemory},    // of a snapshot
		{"display", l.openDisplay},   // a socket for viewers of the screen
		{"release", l.releaseFiles},  // what it inherited is its own
		{"record", l.recordState},    // whose machine this is, for others to see
		{"run", l.runGuest},          // let the guest begin
	} {
		if err := l.run(ctx, step.name, step.do); err != nil {
			return nil, err
		}
	}
	l.launched = true
	return l.instance, nil
}

// launch is a plan while it is carried out.
type launch struct {
	plan    *Plan
	host    Host
	options Options
	undo    undo // of everything, to be run when the instance ends
	lent    undo // closes what only QEMU needs, once QEMU has it

	connections undo         // of networks and forwarded ports, which may end before QEMU does
	disconnect  func() error // runs connections once, and waits for it every time

	dir        string // of the virtual machine, below Dirs.Runtime
	control    *net.UnixListener
	record     *record
	qemuLog    *logFile
	consoleLog *logFile
	disks      []*images.Disk
	written    []writtenDisk // by disk
	kernel     bootFile
	initrd     bootFile
	ports      []port // by NIC; nil: user mode
	process    *process
	instance   *Instance
	launched   bool // all steps were taken
}

// bootFile is a kernel or an initrd: a path that QEMU can open itself, or a
// copy that it inherits.
type bootFile struct {
	path string
	copy *os.File
}

func (l *launch) run(ctx context.Context, name string, step func(context.Context) error) error {
	if l.options.before != nil {
		if err := l.options.before(name); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return step(ctx)
}

func (l *launch) check(ctx context.Context) error {
	for _, w := range l.plan.Warnings {
		l.host.log().Warn(w)
	}
	return l.plan.Check(ctx, l.host)
}

// openDisks opens the disks of a machine that boots. Those of a snapshot have to
// have their content first.
func (l *launch) openDisks(ctx context.Context) error {
	l.undo.push(l.lent.run)
	if l.plan.Restore != nil {
		return nil
	}
	return l.openAll(ctx)
}

// openAll opens the disks, whoever may open them. Overlays have no name.
func (l *launch) openAll(ctx context.Context) error {
	if len(l.plan.Disks) == 0 {
		return nil
	}
	dir := filepath.Join(l.host.Dirs.State, "vms")
	if err := makeFolders(l.host.Dirs.State, dir); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	for _, spec := range l.plan.Disks {
		disk, err := images.PrepareDisk(ctx, l.host.QEMUImg, dir, spec)
		if err != nil {
			return err
		}
		l.lent.push(disk.Close)
		l.disks = append(l.disks, disk)
		written, err := keepOverlay(disk)
		if err != nil {
			return err
		}
		if written.overlay != nil {
			l.undo.push(written.overlay.Close)
		}
		l.written = append(l.written, written)
	}
	return nil
}

// writtenDisk is what a snapshot needs of a disk that is not kept; the zero value
// of one that is.
type writtenDisk struct {
	overlay *os.File // without a name
	bases   []string // paths of the images below it
}

// keepOverlay keeps a disk's overlay open for snapshots, after QEMU has inherited
// it: it has no name to be opened by. The caller closes it. The images below are not
// held, as their locks are to end with QEMU.
func keepOverlay(d *images.Disk) (w writtenDisk, err error) {
	top := d.Layers[0]
	if top.Path != "" {
		return w, nil
	}
	fd, err := unix.FcntlInt(top.File.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return w, fmt.Errorf("keep overlay: %w", err)
	}
	w.overlay = os.NewFile(uintptr(fd), "overlay")
	for _, base := range d.Layers[1:] {
		w.bases = append(w.bases, base.Path)
	}
	return w, nil
}

// loadMemory has the guest go on from where a snapshot was made.
func (l *launch) loadMemory(ctx context.Context) error {
	if l.plan.Restore == nil {
		return nil
	}
	if err := l.instance.bringBack(ctx, *l.plan.Restore); err != nil {
		return err
	}
	f, err := os.Open(l.plan.Restore.Memory)
	if err != nil {
		return fmt.Errorf("load memory: %w", err)
	}
	defer f.Close()
	m := migration{l.process.client, l.process.cmd.Process.Pid}
	if err := unlessStopped(ctx, m.qemu, func(ctx context.Context) error { return m.load(ctx, f) }); err != nil {
		return fmt.Errorf("load memory: %w", err)
	}
	return nil
}

// prepareBoot makes the micro guest, and finds out what QEMU's user can't read.
func (l *launch) prepareBoot(ctx context.Context) (err error) {
	initrd := l.plan.Initrd
	if l.plan.Micro != nil {
		prepare := l.options.micro
		if prepare == nil {
			prepare = images.PrepareMicro
		}
		if initrd, err = prepare(ctx, *l.plan.Micro, l.host.Dirs.Cache); err != nil {
			return err
		}
	}
	if l.kernel, err = l.bootFile(l.plan.Kernel); err != nil {
		return err
	}
	l.initrd, err = l.bootFile(initrd)
	return err
}

func (l *launch) bootFile(path string) (bootFile, error) {
	if path == "" {
		return bootFile{}, nil
	}
	if l.plan.User.UID == uint32(l.host.EUID) {
		return bootFile{path: path}, nil
	}
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return bootFile{}, err
	}
	readable, err := readableBy(l.plan.User, path)
	if err != nil || readable {
		return bootFile{path: path}, err
	}
	f, err := inMemory(path)
	if err != nil {
		return bootFile{}, err
	}
	l.lent.push(f.Close)
	return bootFile{copy: f}, nil
}

// startQEMU starts QEMU and waits for its greeting. A KVM that is there but
// does not work shows only now: some hosts abort, and TCG has to do.
func (l *launch) startQEMU(ctx context.Context) error {
	p, err := l.start(ctx, l.plan.Accel)
	if failed, ok := errors.AsType[*StartError](err); ok && failed.died && l.plan.Fallback {
		if p, err = l.start(ctx, qemu.TCG); err == nil {
			l.host.log().Warn("KVM does not work here, so the guest runs many times slower", "cause", failed)
		}
	}
	if err != nil {
		return err
	}
	l.process = p
	l.undo.push(p.close)
	return nil
}

// releaseFiles closes our copies of what QEMU inherited: the images' locks are
// to end with QEMU. The TAPs stay open for the sake of its end; see
// netsetup.Port.Files.
func (l *launch) releaseFiles(context.Context) error { return l.lent.run() }

// watchGuest begins to read what QEMU and the guest tell.
func (l *launch) watchGuest(context.Context) error {
	l.instance = newInstance(l)
	return nil
}

// runGuest lets the guest begin.
func (l *launch) runGuest(ctx context.Context) error {
	l.watchNICs()
	restore := l.plan.Restore
	if l.options.Paused || restore != nil && restore.Paused {
		l.instance.enter(Paused)
		return nil
	}
	if err := l.instance.QMP().Run(ctx, "cont", nil, nil); err != nil {
		return err
	}
	l.instance.enter(Running)
	if restore != nil {
		return l.instance.announce(ctx)
	}
	return nil
}

type (
	attachFunc func(context.Context, netsetup.Host, netsetup.Spec, netsetup.PortSpec) (port, error)
	microFunc  func(ctx context.Context, spec images.MicroSpec, cacheDir string) (path string, err error)
)
