package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/netsetup/libvirt"
)

// insideFlag has the benchmark measure libvirt, in namespaces made for it: what
// libvirt leaves on a host would be in the others' way.
const insideFlag = "inside-libvirt"

// runLibvirt measures a network of libvirt's without VMs; nothing where libvirt
// is not installed.
func (b *bench) runLibvirt(ctx context.Context) (sample, error) {
	if _, err := exec.LookPath("libvirtd"); err != nil {
		return sample{}, nil
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-"+insideFlag)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL,
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID} // with the process all others end
	var told bytes.Buffer
	cmd.Stderr = &told
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("measure libvirt: %w: %s", err, told.Bytes())
	}
	var took struct{ Up, Gone float64 }
	err = json.Unmarshal(out, &took)
	return sample{networkUp: took.Up, lastGone: took.Gone}, err
}

// libvirtNetwork is as libvirt's packages define default.
const libvirtNetwork = `<network><name>lan</name><forward mode='nat'/><bridge name='virbr0' stp='off' delay='0'/>
<ip address='10.98.0.1' netmask='255.255.255.0'><dhcp><range start='10.98.0.2' end='10.98.0.254'/></dhcp></ip></network>`

// measureLibvirt starts and stops a network of libvirt's, and prints how many
// milliseconds that took. The first time, which makes what libvirt never takes
// away again, does not count.
func measureLibvirt() error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if err := serveLibvirt(); err != nil {
		return err
	}
	file := "/run/network.xml"
	if err := os.WriteFile(file, []byte(libvirtNetwork), 0o600); err != nil {
		return err
	}
	if err := run("virsh --quiet --connect network:///system net-define " + file); err != nil {
		return err
	}
	d := libvirt.Daemon{Sockets: libvirt.DefaultSockets()}
	networks, err := d.Networks(ctx)
	if err != nil || len(networks) != 1 {
		return fmt.Errorf("find the network: %v, %w", networks, err)
	}
	var took struct{ Up, Gone float64 }
	for range 2 {
		begun := time.Now()
		_, err := d.Start(ctx, networks[0].UUID)
		up := time.Now()
		err = errors.Join(err, d.Stop(ctx, networks[0].UUID))
		if err != nil {
			return err
		}
		took.Up, took.Gone = up.Sub(begun).Seconds()*1000, time.Since(up).Seconds()*1000
	}
	return json.NewEncoder(os.Stdout).Encode(took)
}

// serveLibvirt starts libvirtd in these namespaces, with folders of its own and
// no driver but that for networks, and with an uplink as scripts/bench makes it.
func serveLibvirt() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for dir, kind := range map[string]string{"/proc": "proc", "/sys": "sysfs", "/run": "tmpfs", "/etc/libvirt": "tmpfs", "/var/lib": "tmpfs"} {
		if err := unix.Mount(kind, dir, kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	err := run(`ip link set lo up
		ip link add eth1 type veth peer name outside
		ip link set outside up
		ip link set eth1 up
		ip address add 192.0.2.2/24 dev eth1
		ip route add default via 192.0.2.1`)
	if err != nil {
		return err
	}
	drivers, err := filepath.Glob("/usr/lib/*/libvirt/connection-driver/libvirt_driver_network.so")
	if err != nil || len(drivers) != 1 {
		return fmt.Errorf("find libvirt's network driver: %v, %w", drivers, err)
	}
	return run("mkdir /run/drivers; ln -s " + drivers[0] + " /run/drivers; mount -t tmpfs tmpfs /var/log; mkdir /var/log/libvirt; LIBVIRT_DRIVER_DIR=/run/drivers libvirtd --daemon --pid-file /run/libvirtd.pid")
}
