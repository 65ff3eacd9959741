package vm

import (
	"context"
	"errors"
	"maps"
	"net"
	"os"
	"slices"
)

// sockets are the connections with a QEMU. The near ends are ours, the far
// ends are to be inherited.
type sockets struct {
	monitor, console *net.UnixConn
	ports            map[string]*net.UnixConn
	far              inheritance
}

// openSockets makes the connections.
func openSockets(ports []guestPort) (s sockets, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	open := func(name string) *net.UnixConn {
		if err != nil {
			return nil
		}
		var near *net.UnixConn
		var far *os.File
		if near, far, err = socketpair(name); err != nil {
			return nil
		}
		s.far.add(name, far)
		return near
	}
	s.console, s.monitor = open(fdConsole), open(fdQMP)
	s.ports = map[string]*net.UnixConn{}
	for _, p := range ports {
		s.ports[p.fd] = open(p.fd)
	}
	return s, err
}

// closeFar closes the far ends: QEMU has its own now.
func (s *sockets) closeFar() error {
	var errs []error
	for _, f := range s.far.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

func (s *sockets) close() error {
	errs := []error{s.closeFar()}
	for _, c := range append(slices.Collect(maps.Values(s.ports)), s.monitor, s.console) {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}

// start starts QEMU with an accelerator and waits for its greeting. Its error
// is a *StartError, or the context's. Nothing of QEMU is left then; what it was
// to inherit is as before.
func (l *launch) start(ctx context.Context, accel string) (*process, error) {
	s, err := openSockets(l.plan.ports())
	if err != nil {
		return nil, err
	}
	logged := l.qemuLog.mark()
	in := l.inheritance(s.far)
	p := &process{
		cmd:   l.command(l.plan.config(l.settings(accel, in)).Args(), in),
		accel: accel, console: s.console, ports: s.ports,
	}
	if err := p.start(); err != nil {
		return nil, &StartError{Err: errors.Join(err, s.close())}
	}
	if err := s.closeFar(); err != nil {
		return nil, errors.Join(err, s.monitor.Close(), p.close())
	}
	died, err := p.connect(ctx, s.monitor)
	switch {
	case err == nil:
		return p, nil
	case ctx.Err() != nil:
		return nil, err
	}
	if died && p.err != nil {
		err = p.err // says more than that the connection ended
	}
	return nil, &StartError{Err: err, Log: l.qemuLog.tail(logged), died: died}
}

// inheritance is all that QEMU gets: the sockets, the TAPs, the disks, and what
// its user could not open.
func (l *launch) inheritance(far inheritance) *inheritance {
	in := &inheritance{}
	for i, f := range far.files {
		in.add(far.names[i], f)
	}
	for n, p := range l.ports {
		if p != nil {
			for queue, f := range p.Files() {
				in.add(fdQueue(n, queue), f)
			}
		}
	}
	for n, disk := range l.disks {
		for i, layer := range disk.Layers {
			in.add(fdDisk(n, i), layer.File)
		}
	}
	if l.kernel.copy != nil {
		in.add(fdKernel, l.kernel.copy)
	}
	if l.initrd.copy != nil {
		in.add(fdInitrd, l.initrd.copy)
	}
	return in
}

// settings are what the launch has found out.
func (l *launch) settings(accel string, in *inheritance) settings {
	s := settings{accel: accel, kernel: l.kernel.path, initrd: l.initrd.path, fd: in.fd}
	if l.kernel.copy != nil {
		s.kernel = in.path(fdKernel)
	}
	if l.initrd.copy != nil {
		s.initrd = in.path(fdInitrd)
	}
	for _, p := range l.ports {
		mtu := 0
		if p != nil {
			mtu = p.MTU()
		}
		s.mtus = append(s.mtus, mtu)
	}
	for _, disk := range l.disks {
		s.disks = append(s.disks, disk.Layers)
	}
	return s
}
