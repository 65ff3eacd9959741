package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vmrun/vmrun/integration/internal/hoststate"
	"github.com/vmrun/vmrun/netsetup"
	"github.com/vmrun/vmrun/qmp"
)

// sample is what one round has measured of one contender: milliseconds, or MiB.
type sample map[measure]float64

// milliseconds notes how long something took.
func (s sample) milliseconds(m measure, from, to time.Time) {
	s[m] = float64(to.Sub(from).Microseconds()) / 1000
}

// runVMRun measures the real command from outside.
func (b *bench) runVMRun(ctx context.Context) (sample, error) {
	cmd := exec.Command(b.host.Executable, "run", "--grace", "0s", b.plan.Profile)
	cmd.Env = b.env
	p, err := startProgram(cmd)
	if err != nil {
		return nil, err
	}
	launched, err := p.await(ctx, "joined network")
	if err != nil {
		return nil, err
	}
	var begun [3]execution // itself, the keeper, QEMU
	for i, path := range []string{b.host.Executable, b.host.Executable, b.host.QEMU} {
		if begun[i], err = b.execs.next(ctx, path); err != nil {
			return nil, err
		}
	}
	keeper, qemu := begun[1], begun[2]
	s := sample{}
	s.milliseconds(totalLaunch, p.started, launched)
	s.milliseconds(startToKeeper, p.started, keeper.at)
	s.milliseconds(keeperToQEMU, keeper.at, qemu.at)
	s.milliseconds(execToQMP, qemu.at, launched)
	if err := s.stop(ctx, p, qemu.pid, keeper.pid); err != nil {
		return nil, err
	}
	return s, nil
}

// stop weighs a contender's two processes, the program itself and its helper
// (keeper or dnsmasq), and measures the end of them and of QEMU.
func (s sample) stop(ctx context.Context, p *program, qemu, helper int) (err error) {
	if s[supervisorPSS], err = memory(p.cmd.Process.Pid); err != nil {
		return err
	}
	if s[helperPSS], err = memory(helper); err != nil {
		return err
	}
	asked, gone, err := p.stop(ctx, qemu, helper)
	if err != nil {
		return err
	}
	last := slices.MaxFunc(gone, time.Time.Compare)
	s.milliseconds(stopToGone, asked, last)
	s.milliseconds(stopToQEMU, asked, gone[0])
	s.milliseconds(qemuToGone, gone[0], last)
	return nil
}

// runScript measures the same done by hand.
func (b *bench) runScript(ctx context.Context) (sample, error) {
	cmd := exec.Command(b.script, b.dir, b.firmware)
	cmd.Env = b.env
	p, err := startProgram(cmd)
	if err != nil {
		return nil, err
	}
	begun, err := p.await(ctx, "begin")
	if err != nil {
		return nil, err
	}
	up, err := p.await(ctx, "network up")
	if err != nil {
		return nil, err
	}
	qemu, err := b.execs.next(ctx, b.host.QEMU)
	if err != nil {
		return nil, err
	}
	launched, err := answers(ctx, filepath.Join(b.dir, "qmp.sock"))
	if err != nil {
		return nil, err
	}
	s := sample{}
	s.milliseconds(networkUp, begun, up)
	s.milliseconds(totalLaunch, p.started, launched)
	s.milliseconds(startToQEMU, p.started, qemu.at)
	s.milliseconds(execToQMP, qemu.at, launched)
	dnsmasq, err := find("dnsmasq ")
	if err != nil {
		return nil, err
	}
	if err := s.stop(ctx, p, qemu.pid, dnsmasq); err != nil {
		return nil, err
	}
	return s, nil
}

// answers returns when QEMU has answered on a socket that it makes itself. That
// has to be polled; it is done a hundred times more often than scripts do.
func answers(ctx context.Context, path string) (time.Time, error) {
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for {
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		if err == nil {
			return greeted(ctx, conn)
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return time.Time{}, errors.Join(err, context.Cause(ctx))
		}
	}
}

// greeted returns when QEMU has answered the first command on its monitor.
func greeted(ctx context.Context, monitor *net.UnixConn) (time.Time, error) {
	client, err := qmp.NewClient(ctx, monitor)
	if err != nil {
		return time.Time{}, err
	}
	return time.Now(), client.Close()
}

// find returns the process whose command begins so.
func find(command string) (pid int, err error) {
	running, err := hoststate.Running()
	if err != nil {
		return 0, err
	}
	for _, p := range running {
		if strings.HasPrefix(p.Command, command) {
			return p.PID, nil
		}
	}
	return 0, fmt.Errorf("find %s: no such process", command)
}

// runNetwork measures vmrun's network alone, through its package.
func (b *bench) runNetwork(ctx context.Context) (s sample, err error) {
	h := netsetup.Host{Executable: b.host.Executable, Runtime: b.host.Dirs.Runtime, State: b.host.Dirs.State}
	nic := b.plan.NICs[0]
	begun := time.Now()
	port, err := netsetup.Attach(ctx, h, *nic.Spec, *nic.Port)
	if err != nil {
		return nil, err
	}
	s = sample{}
	s.milliseconds(networkUp, begun, time.Now())
	_, err = b.execs.next(ctx, b.host.Executable)
	return s, errors.Join(err, port.Close())
}
