package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netns"

	"github.com/vmrun/vmrun/integration/internal/dhcpload"
	"github.com/vmrun/vmrun/netsetup"
)

// The DHCP servers are asked by so many machines at a time, for so long, through
// a relay on their network, a network namespace of this name.
const (
	asking     = 32
	askingTime = time.Second
	relayName  = "relay"
)

var (
	wide    = netip.MustParsePrefix("10.96.0.0/16")
	server  = netip.MustParseAddr("10.96.0.1")
	relayIP = netip.MustParseAddr("10.96.0.2")
	first   = netip.MustParseAddr("10.96.1.0")
	last    = netip.MustParseAddr("10.96.254.255")
)

// runDHCP measures the keeper's DHCP server.
func (b *bench) runDHCP(ctx context.Context) (s sample, err error) {
	h := netsetup.Host{Executable: b.host.Executable, Runtime: filepath.Join(b.dir, "dhcp"), State: filepath.Join(b.dir, "dhcp")}
	defer func() { err = errors.Join(err, os.RemoveAll(h.Runtime)) }()
	spec := *b.plan.NICs[0].Spec
	spec.Subnet, spec.PoolFirst, spec.PoolLast = wide, first, last
	port, err := netsetup.Attach(ctx, h, spec, *b.plan.NICs[0].Port)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, port.Close()) }()
	if _, err := b.execs.next(ctx, b.host.Executable); err != nil {
		return nil, err
	}
	return exchanges(ctx, port.Bridge())
}

// runDnsmasq measures dnsmasq in its place.
func (b *bench) runDnsmasq(ctx context.Context) (s sample, err error) {
	const bridge = "byhand0"
	err = run(fmt.Sprintf(`ip link add %[1]s type bridge
		ip address add %[2]s/16 dev %[1]s
		ip link set %[1]s up`, bridge, server))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, run("ip link delete "+bridge)) }()
	leases, pid := filepath.Join(b.dir, "leases"), filepath.Join(b.dir, "dnsmasq.pid")
	err = run(strings.Join([]string{"dnsmasq", "--conf-file=/dev/null", "--no-hosts", "--port=0", "--interface=" + bridge,
		"--except-interface=lo", "--bind-interfaces", "--no-ping", "--dhcp-authoritative", "--dhcp-lease-max=100000",
		fmt.Sprintf("--dhcp-range=%s,%s", first, last), "--dhcp-leasefile=" + leases, "--pid-file=" + pid}, " "))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, endDaemon(ctx, pid), os.Remove(leases)) }()
	return exchanges(ctx, bridge)
}

// endDaemon ends the process of a pid file and waits for its end.
func endDaemon(ctx context.Context, file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return err
	}
	end, err := watchEnd(ctx, pid)
	if err != nil {
		return err
	}
	if err := run("kill " + strconv.Itoa(pid)); err != nil {
		return err
	}
	if _, ok := <-end; !ok {
		return fmt.Errorf("process %d does not end", pid)
	}
	return nil
}

// exchanges asks the server on a bridge.
func exchanges(ctx context.Context, bridge string) (s sample, err error) {
	err = run(fmt.Sprintf(`ip netns add %[1]s
		ip link add relay0 type veth peer name eth0 netns %[1]s
		ip link set relay0 addrgenmode none
		ip link set relay0 master %[2]s up
		ip -n %[1]s address add %[3]s/16 dev eth0
		ip -n %[1]s link set eth0 up`, relayName, bridge, relayIP))
	defer func() { err = errors.Join(err, run("ip link delete relay0; ip netns delete "+relayName)) }()
	if err != nil {
		return nil, err
	}
	client, err := clientIn(relayName)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	if _, err := client.Lease(ctx, dhcpload.Machine(0)); err != nil { // the server is there
		return nil, err
	}
	rate, err := client.Rate(ctx, 1, asking, askingTime)
	return sample{dhcpRate: rate}, err
}

// clientIn opens the client's socket in a network namespace.
func clientIn(namespace string) (client *dhcpload.Client, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		var ns netns.NsHandle
		if ns, err = netns.GetFromName(namespace); err != nil {
			return
		}
		defer ns.Close()
		if err = netns.Set(ns); err != nil {
			return
		}
		client, err = dhcpload.NewClient(relayIP, server)
	}()
	<-done
	return client, err
}

// run executes a script of the shell.
func run(script string) error {
	if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
		return fmt.Errorf("run %s: %w: %s", strings.Fields(script)[0], err, out)
	}
	return nil
}
