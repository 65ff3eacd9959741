package dhcp

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
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
	must := strings.Split(os.Getenv("VMRUN_TEST_MUST"), ",")
	if slices.Contains(must, feature) || slices.Contains(must, "all") {
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
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 { // root needs none, and has none where it runs in a chroot
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
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
