package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// runBare measures QEMU alone: vmrun's own command line for it, with all that
// it inherits ready before.
func (b *bench) runBare(ctx context.Context) (s sample, err error) {
	in, err := openInheritance()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, in.close()) }()
	cmd := exec.Command(b.host.QEMU, in.replace(b.plan.Command(b.host)[1:])...)
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
	console *os.File
	monitor *net.UnixConn
}

// openInheritance opens a TAP and two socket pairs. The caller closes it.
func openInheritance() (in *inheritance, err error) {
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
	in.add("nic0.queue0", tap.Fds[0])
	if in.console, err = in.pair("console"); err != nil {
		return in, err
	}
	monitor, err := in.pair("qmp")
	if err != nil {
		return in, err
	}
	defer monitor.Close()
	conn, err := net.FileConn(monitor)
	if err != nil {
		return in, err
	}
	in.monitor = conn.(*net.UnixConn)
	return in, nil
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
	for _, f := range in.files {
		errs = append(errs, f.Close())
	}
	if in.console != nil {
		errs = append(errs, in.console.Close())
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
