package sandbox

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Namespace is a network namespace. It lives until the test that made it ends
// and nothing else holds it.
type Namespace struct {
	file *os.File
	link *netlink.Handle
}

// NewNamespace makes an empty network with the loopback up.
func NewNamespace(t *testing.T) *Namespace {
	t.Helper()
	n := new(Namespace)
	err := onThread(func() (err error) {
		if err := lockAndUnshare(); err != nil {
			return err
		}
		n.file, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	return n.opened(t, err)
}

// Current is the network that the test itself is in.
func Current(t *testing.T) *Namespace {
	t.Helper()
	file, err := os.Open("/proc/thread-self/ns/net") // the process's first thread may have been onThread's
	n := &Namespace{file: file}
	return n.opened(t, err)
}

func (n *Namespace) opened(t *testing.T, err error) *Namespace {
	t.Helper()
	if err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	t.Cleanup(func() { n.file.Close() })
	if n.link, err = netlink.NewHandleAt(netns.NsHandle(n.file.Fd())); err != nil {
		t.Fatalf("open netlink: %v", err)
	}
	t.Cleanup(n.link.Close)
	lo, err := n.link.LinkByName("lo")
	if err == nil {
		err = n.link.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatalf("set loopback up: %v", err)
	}
	return n
}

// Links speaks netlink in the namespace.
func (n *Namespace) Links() *netlink.Handle { return n.link }

// File is the namespace as a descriptor; the namespace's owner closes it.
func (n *Namespace) File() *os.File { return n.file }

// Do runs f on a thread in the namespace. Sockets that f opens and processes
// that it starts stay in there.
func (n *Namespace) Do(f func() error) error {
	return onThread(func() error {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

func onThread(f func() error) error {
	done := make(chan error)
	go func() { done <- f() }()
	return <-done
}

func lockAndUnshare() error {
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	return unix.Unshare(unix.CLONE_NEWNET)
}
