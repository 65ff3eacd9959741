package dhcp

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// needs skips a test whose feature the machine lacks, aloud; where the feature
// is in VMRUN_TEST_MUST, a list with commas, the test fails.
func needs(t *testing.T, feature string, err error) {
	t.Helper()
	if err == nil {
		return
	}
	if slices.Contains(strings.Split(os.Getenv("VMRUN_TEST_MUST"), ","), feature) {
		t.Fatalf("no %s here: %v", feature, err)
	}
	t.Skipf("no %s here: %v", feature, err)
}

const namespaceVariable = "VMRUN_TEST_DHCP_NAMESPACE"

// inNamespace tells whether the test runs in namespaces of its own. If not, it
// runs the test again in such, where it may do as it likes with links, and
// reports how that went.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(namespaceVariable) != "" {
		return true
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), namespaceVariable+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	out := new(strings.Builder)
	cmd.Stdout, cmd.Stderr = out, out
	runtime.LockOSThread() // the signal comes at the end of the thread
	defer runtime.UnlockOSThread()
	needs(t, "userns", cmd.Start())
	if err := cmd.Wait(); err != nil {
		t.Errorf("in a namespace: %v\n%s", err, out)
	} else if strings.Contains(out.String(), "--- SKIP") {
		t.Skip(out)
	} else if testing.Verbose() {
		t.Log(out)
	}
	return false
}

// wire is a veth pair: the server's end here, the clients' in a network
// namespace of their own, since the kernel would short-cut packets between two
// of its own addresses.
type wire struct {
	t       *testing.T
	server  netns.NsHandle
	clients netns.NsHandle
	mac     mac // of the server's end
}

const (
	serverLink = "vmrtest0"
	clientLink = "vmrtest1"
)

func newWire(t *testing.T) *wire {
	t.Helper()
	runtime.LockOSThread() // for good: the thread's namespace is changed below
	w := &wire{t: t}
	var err error
	w.server, err = netns.Get()
	w.must(err)
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: serverLink}, PeerName: clientLink}
	w.must(netlink.LinkAdd(veth))
	w.clients, err = netns.New()
	w.must(err)
	w.must(netns.Set(w.server))
	peer, err := netlink.LinkByName(clientLink)
	w.must(err)
	w.must(netlink.LinkSetNsFd(peer, int(w.clients)))
	link, err := netlink.LinkByName(serverLink)
	w.must(err)
	w.mac = mac(link.Attrs().HardwareAddr)
	addr, err := netlink.ParseAddr(serverAddr.String() + "/24")
	w.must(err)
	w.must(netlink.AddrAdd(link, addr))
	w.must(netlink.LinkSetUp(link))
	w.inClients(func() error {
		peer, err := netlink.LinkByName(clientLink)
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(peer)
	})
	return w
}

func (w *wire) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// inClients does something on the clients' side.
func (w *wire) inClients(do func() error) {
	w.t.Helper()
	w.must(netns.Set(w.clients))
	err := do()
	w.must(netns.Set(w.server))
	w.must(err)
}

// handledLink tells of each message after the server has dealt with it.
type handledLink struct {
	Link
	last  dhcpv4.MessageType
	kinds chan dhcpv4.MessageType
}

func (l *handledLink) Read(b []byte) (int, error) {
	if l.last != dhcpv4.MessageTypeNone {
		select {
		case l.kinds <- l.last:
		default: // a load test does not look
		}
	}
	n, err := l.Link.Read(b)
	l.last = dhcpv4.MessageTypeNone
	if d, ok := parseFrame(b[:max(n, 0)]); ok {
		if m, err := dhcpv4.FromBytes(d.payload); err == nil {
			l.last = m.MessageType()
		}
	}
	return n, err
}

func (l *handledLink) await(kind dhcpv4.MessageType) {
	for got := range l.kinds {
		if got == kind {
			return
		}
	}
}

// serve runs a server on the wire until the test ends.
func (w *wire) serve(world *world) *handledLink {
	w.t.Helper()
	link, err := Listen(serverLink)
	w.must(err)
	handled := &handledLink{Link: link, kinds: make(chan dhcpv4.MessageType, 1000)}
	world.cfg.Link, world.cfg.MAC = handled, w.mac[:]
	world.server, err = NewServer(world.cfg, world.leases)
	w.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- world.server.Serve(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
		link.Close()
	})
	return handled
}

// clientMAC is the address of the clients' end.
func (w *wire) clientMAC() (m mac) {
	w.t.Helper()
	w.inClients(func() error {
		link, err := netlink.LinkByName(clientLink)
		if err == nil {
			m = mac(link.Attrs().HardwareAddr)
		}
		return err
	})
	return m
}

// dhcpClient is a client that tells of its steps through a script.
type dhcpClient struct {
	t     *testing.T
	cmd   *exec.Cmd
	steps *bufio.Scanner
	out   *strings.Builder
}

// start runs a client whose script writes words to $STEPS.
func (w *wire) start(script, name string, args ...string) *dhcpClient {
	w.t.Helper()
	dir := w.t.TempDir()
	pipe := filepath.Join(dir, "steps")
	w.must(unix.Mkfifo(pipe, 0o600))
	steps, err := os.OpenFile(pipe, os.O_RDWR, 0)
	w.must(err)
	path := filepath.Join(dir, "script")
	w.must(os.WriteFile(path, []byte("#!/bin/sh\nSTEPS="+pipe+"\n"+script), 0o700))
	for i := range args {
		args[i] = strings.NewReplacer("SCRIPT", path, "DIR", dir).Replace(args[i])
	}
	c := &dhcpClient{t: w.t, cmd: exec.Command(name, args...), steps: bufio.NewScanner(steps), out: new(strings.Builder)}
	c.cmd.Stdout, c.cmd.Stderr = c.out, c.out
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	w.inClients(c.cmd.Start)
	w.t.Cleanup(func() {
		_ = c.cmd.Process.Kill()
		_ = c.cmd.Wait()
		steps.Close()
		if w.t.Failed() {
			w.t.Logf("%s:\n%s", name, c.out)
		}
	})
	return c
}

// await reads the client's steps until one begins with a word.
func (c *dhcpClient) await(step string) string {
	c.t.Helper()
	for c.steps.Scan() {
		if line := c.steps.Text(); strings.HasPrefix(line, step) {
			return line
		}
	}
	c.t.Fatalf("no %s: %v\n%s", step, c.steps.Err(), c.out)
	return ""
}

func (c *dhcpClient) signal(s os.Signal) {
	c.t.Helper()
	if err := c.cmd.Process.Signal(s); err != nil {
		c.t.Fatal(err)
	}
}

const udhcpcScript = `
if [ "$1" = bound ]; then busybox ip address add $ip/$mask dev $interface; fi
echo $1 $ip/$mask $router $dns $domain $hostname $mtu $broadcast $serverid $lease >$STEPS
`

func TestUdhcpc(t *testing.T) {
	needs(t, "udhcpc", lookUp("busybox", "udhcpc"))
	if !inNamespace(t) {
		return
	}
	wire := newWire(t)
	world := newWorld(t)
	addr := world.reserve(wire.clientMAC(), "10.70.0.10", "web")
	link := wire.serve(world)
	c := wire.start(udhcpcScript, "busybox", "udhcpc", "-f", "-i", clientLink, "-s", "SCRIPT", "-O", "mtu")
	want := fmt.Sprintf(" %s/24 10.70.0.1 10.70.0.1 vmrun.internal web 1400 10.70.0.255 10.70.0.1 3600", addr)
	if got := c.await("bound"); got != "bound"+want {
		t.Errorf("got  %s\nwant bound%s", got, want)
	}
	link.await(dhcpv4.MessageTypeRequest)
	// A renewal is sent by the kernel, which leaves the checksum to the card.
	c.signal(syscall.SIGUSR1)
	if got := c.await("renew"); got != "renew"+want {
		t.Errorf("got  %s\nwant renew%s", got, want)
	}
	if got := world.leases.List()[0].State; got != Bound {
		t.Errorf("renewed, but %s", got)
	}
	c.signal(syscall.SIGUSR2)
	link.await(dhcpv4.MessageTypeRelease)
	if got := world.leases.List()[0].State; got != Reserved {
		t.Errorf("released, but %s", got)
	}
}

const dhclientScript = `
echo $reason $new_ip_address $new_subnet_mask $new_routers $new_domain_name_servers $new_domain_name $new_host_name $new_interface_mtu >$STEPS
`

func TestDhclient(t *testing.T) {
	needs(t, "dhclient", lookUp("dhclient"))
	if !inNamespace(t) {
		return
	}
	wire := newWire(t)
	world := newWorld(t)
	wire.serve(world)
	c := wire.start(dhclientScript, "dhclient", "-4", "-d", "-sf", "SCRIPT", "-lf", "DIR/leases", "-pf", "DIR/pid", "-cf", "/dev/null", clientLink)
	m := wire.clientMAC()
	want := fmt.Sprintf("BOUND %s 255.255.255.0 10.70.0.1 10.70.0.1 vmrun.internal 1400", world.opts.Pool.Preferred(m[:]))
	if got := c.await("BOUND"); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestFilter sends what must not reach the server past the kernel's filter, and
// then a request.
func TestFilter(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	wire := newWire(t)
	link, err := Listen(serverLink)
	wire.must(err)
	defer link.Close()
	var noise Link
	wire.inClients(func() (err error) {
		noise, err = ListenARP(clientLink)
		return err
	})
	request := discover(client(1)).frame()
	other := discover(client(4)).frame()
	tagged := append(append(other[:12:12], 0x81, 0, 0, 10), other[12:]...)
	reply := discover(client(2))
	reply.dstPort = clientPort
	arp := arpPacket{op: arpRequest, sender: ip("10.70.0.5"), target: ip("10.70.0.6")}.frame(client(1), broadcastMAC)
	for _, frame := range [][]byte{tagged, reply.frame(), arp} {
		_, err := noise.Write(frame)
		wire.must(err)
	}
	host, err := Listen(serverLink)
	wire.must(err)
	defer host.Close()
	_, err = host.Write(discover(client(3)).frame())
	wire.must(err)
	_, err = noise.Write(request)
	wire.must(err)
	buf := make([]byte, 2000)
	n, err := link.Read(buf)
	wire.must(err)
	if !bytes.Equal(buf[:n], request) {
		t.Errorf("got through: %x", buf[:n])
	}
}

// TestProbeOnTheWire has two hosts: one defends its port's address, the other
// asks for it.
func TestProbeOnTheWire(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	wire := newWire(t)
	world := newWorld(t)
	world.reserve(client(1), "10.70.0.10", "web")
	here, err := ListenARP(serverLink)
	wire.must(err)
	defer here.Close()
	var there Link
	wire.inClients(func() (err error) {
		there, err = ListenARP(clientLink)
		return err
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Defend(ctx, here, wire.mac[:], world.leases) }()
	sender, owner := wire.clientMAC(), client(2)
	for addr, want := range map[string]string{"10.70.0.10": client(1).String(), "10.70.0.11": "", "10.70.0.1": wire.mac.String()} {
		got, err := Probe(ctx, there, Question{IP: ip(addr), For: owner[:], Sender: sender[:]})
		if err != nil || got.String() != want {
			t.Errorf("%s: held by %s, %v, want %s", addr, got, err, want)
		}
	}
	cancel()
	wire.must(<-done)
}

// TestPerfdhcp is a second at a thousand new clients per second.
func TestPerfdhcp(t *testing.T) {
	needs(t, "perfdhcp", lookUp("perfdhcp", "-v"))
	if !inNamespace(t) {
		return
	}
	wire := newWire(t)
	world := newWorld(t, func(o *Options, _ *Config) {
		o.Pool = Pool{Subnet: netip.MustParsePrefix("10.70.0.0/16"), First: ip("10.70.1.0"), Last: ip("10.70.255.0"), Exclude: []netip.Addr{serverAddr}}
	})
	wire.serve(world)
	wire.inClients(func() error {
		link, err := netlink.LinkByName(clientLink)
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr("10.70.0.2/16")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(link, addr)
	})
	// -W lets the last answers arrive, in microseconds.
	cmd := exec.Command("perfdhcp", "-4", "-l", clientLink, "-r", "1000", "-R", "1000000", "-p", "1", "-W", "100000", "-u", serverAddr.String())
	out := new(strings.Builder)
	cmd.Stdout, cmd.Stderr = out, out
	wire.inClients(cmd.Start)
	err := cmd.Wait() // 3: there were drops
	for _, m := range regexp.MustCompile(`drops ratio: (\S+) %|non unique addresses: (\S+)`).FindAllStringSubmatch(out.String(), -1) {
		if f, parseErr := strconv.ParseFloat(m[1]+m[2], 64); parseErr != nil || f > 0.1 {
			t.Errorf("perfdhcp, %v:\n%s", err, out)
		}
	}
	bound := 0
	for _, lease := range world.leases.List() {
		if lease.State == Bound {
			bound++
		}
	}
	if bound < 900 {
		t.Errorf("%d leases", bound)
	}
}

// lookUp tells whether a program can be run.
func lookUp(name string, args ...string) error {
	path, err := exec.LookPath(name)
	if err != nil || len(args) == 0 {
		return err
	}
	out, err := exec.Command(path, append(args, "--help")...).CombinedOutput()
	if err != nil && !strings.Contains(string(out), "Usage") && !strings.Contains(string(out), "VERSION") {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}
