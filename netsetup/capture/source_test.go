package capture

import (
	"errors"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inNetwork runs a test in a network of its own with a pair of links, wire and
// far, both up. The thread that has entered it ends with the test.
func inNetwork(t *testing.T, body func(t *testing.T, wire, far netlink.Link)) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			needs(t, "root", err)
		}
		pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wire"}, PeerName: "far"}
		if err := netlink.LinkAdd(pair); err != nil {
			t.Error(err)
			return
		}
		wire, err1 := netlink.LinkByName("wire")
		far, err2 := netlink.LinkByName("far")
		if err := errors.Join(err1, err2); err != nil {
			t.Error(err)
			return
		}
		for _, l := range []netlink.Link{wire, far} {
			os.WriteFile("/proc/sys/net/ipv6/conf/"+l.Attrs().Name+"/disable_ipv6", []byte("1"), 0) // it would talk
			if err := netlink.LinkSetUp(l); err != nil {
				t.Error(err)
				return
			}
		}
		body(t, wire, far)
	}()
	<-done
}

func send(t *testing.T, link netlink.Link, frame []byte) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Error(err)
		return
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index}); err != nil {
		t.Error(err)
	}
}

// TestSource sees frames in both directions, with their tags, whole and cut.
func TestSource(t *testing.T) {
	inNetwork(t, func(t *testing.T, wire, far netlink.Link) {
		s, err := Open("wire", 40)
		if err != nil {
			t.Error(err)
			return
		}
		defer s.Close()
		all := packets(t)
		start := time.Now()
		for _, tt := range []struct {
			name     string
			from     netlink.Link
			outbound bool
		}{{"arp", far, false}, {"tagged", far, false}, {"http", wire, true}, {"tagged", wire, true}} {
			send(t, tt.from, all[tt.name].Data)
			got, err := s.Read()
			if err != nil {
				t.Error(err)
				return
			}
			want := all[tt.name].Data
			if got.Length != len(want) || got.Outbound != tt.outbound || string(got.Data) != string(want[:min(40, len(want))]) {
				t.Errorf("%s: %+v, want %d bytes % x", tt.name, got, len(want), want)
			}
			if got.Time.Before(start.Add(-time.Second)) || got.Time.After(time.Now().Add(time.Second)) {
				t.Errorf("%s: at %v", tt.name, got.Time)
			}
		}
		if stats, err := s.Statistics(); err != nil || stats.Received != 4 || stats.Dropped != 0 {
			t.Errorf("counted %+v, %v", stats, err)
		}
		if err := netlink.LinkDel(wire); err != nil {
			t.Error(err)
		}
		if _, err := s.Read(); !errors.Is(err, ErrGone) {
			t.Errorf("after the interface's end: %v", err)
		}
	})
}

// TestSourceCloses: whoever waits is told.
func TestSourceCloses(t *testing.T) {
	inNetwork(t, func(t *testing.T, _, _ netlink.Link) {
		s, err := Open("wire", MaxSnapshot)
		if err != nil {
			t.Error(err)
			return
		}
		ended := make(chan error)
		go func() {
			_, err := s.Read()
			ended <- err
		}()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-ended; !errors.Is(err, os.ErrClosed) {
			t.Errorf("Read ended with %v", err)
		}
	})
}

func TestOpenFaults(t *testing.T) {
	if _, err := Open("nosuchlink", 100); err == nil {
		t.Error("an interface that is not there was opened")
	}
	ifis, err := net.Interfaces()
	if err != nil || len(ifis) == 0 {
		t.Skip("no interface")
	}
	for _, snapshot := range []int{-1, 0, MaxSnapshot + 1} {
		if _, err := Open(ifis[0].Name, snapshot); err == nil {
			t.Errorf("a snapshot of %d bytes was taken", snapshot)
		}
	}
}
