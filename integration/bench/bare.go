package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// runBare measures QEMU alone: vmrun's own command line for it, with all that
// it inherits ready before.
func (b *bench) runBare(ctx context.Context) (s sample, err error) {
	command := b.plan.Command(b.host)
	in, err := openInheritance(command)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, in.close()) }()
	cmd := exec.Command(b.host.QEMU, in.replace(command[1:])...)
	cmd.Env, cmd.Dir, cmd.ExtraFiles = b.env, "/", in.files
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	defer cmd.Wait() // it is killed: that is no error
	defer cmd.Process.Kill()
	launched, err := greeted(ctx, in.monitor)
	if err != nil {
		return nil, err
	}
	qemu, err := b.execs.next(ctx, b.host.QEMU)
	if err != nil {
		return nil, err
	}
	s = sample{}
	s.milliseconds(totalLaunch, begun, launched)
	s.milliseconds(execToQMP, qemu.at, launched)
	return s, nil
}

// inheritance is what vmrun's QEMU inherits, under the names that a plan's
// command line has for it, and our ends of it.
type inheritance struct {
	names   []string
	files   []*os.File
	near    []*os.File // of socket pairs that nobody here talks on
	monitor *net.UnixConn
}

const (
	tapName     = "nic0.queue0"
	monitorName = "qmp"
)

// inherited finds the names of descriptors in a command line.
var inherited = regexp.MustCompile(`fd=\{([^}]+)\}`)

// openInheritance opens a TAP, and a socket pair for everything else that a
// command line names. The caller closes it.
func openInheritance(command []string) (in *inheritance, err error) {
	in = &inheritance{}
	defer func() {
		if err != nil {
			err = errors.Join(err, in.close())
		}
	}()
	tap := &netlink.Tuntap{
		LinkAttrs: netlink.LinkAttrs{Name: "bare0"}, Mode: netlink.TUNTAP_MODE_TAP,
		Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR, Queues: 1, NonPersist: true,
	}
	if err := netlink.LinkAdd(tap); err != nil {
		return in, fmt.Errorf("open TAP: %w", err)
	}
	in.add(tapName, tap.Fds[0])
	for _, name := range inherited.FindAllStringSubmatch(strings.Join(command, " "), -1) {
		if name[1] == tapName {
			continue
		}
		if err := in.connect(name[1]); err != nil {
			return in, err
		}
	}
	if in.monitor == nil {
		return in, errors.New("find the monitor in QEMU's command line: it has none")
	}
	return in, nil
}

// connect makes a socket pair, of which our end may be the monitor's.
func (in *inheritance) connect(name string) error {
	near, err := in.pair(name)
	if err != nil {
		return err
	}
	if name != monitorName {
		in.near = append(in.near, near)
		return nil
	}
	defer near.Close()
	conn, err := net.FileConn(near)
	if err != nil {
		return err
	}
	in.monitor = conn.(*net.UnixConn)
	return nil
}

func (in *inheritance) add(name string, f *os.File) {
	in.names = append(in.names, name)
	in.files = append(in.files, f)
}

// pair makes a socket pair and returns our end.
func (in *inheritance) pair(name string) (*os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make socket pair: %w", err)
	}
	in.add(name, os.NewFile(uintptr(fds[1]), name))
	return os.NewFile(uintptr(fds[0]), name), nil
}

func (in *inheritance) close() error {
	var errs []error
	for _, f := range append(in.files, in.near...) {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// firstInherited is the number of a child's first inherited file (os/exec).
const firstInherited = 3

// replace puts the numbers of the inherited files in the place of their names
// in a plan's command line.
func (in *inheritance) replace(args []string) []string {
	var pairs []string
	for i, name := range in.names {
		pairs = append(pairs, "{"+name+"}", strconv.Itoa(firstInherited+i))
	}
	names := strings.NewReplacer(pairs...)
	var replaced []string
	for _, arg := range args {
		replaced = append(replaced, names.Replace(arg))
	}
	return replaced
}
