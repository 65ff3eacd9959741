package vm

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vmrun/vmrun/profiles"
)

var loopback = netip.MustParseAddr("127.0.0.1")

// forward starts a forwarding to a port of the loopback interface.
func forward(t *testing.T, proto string, guest net.Addr) (*forwarding, string) {
	t.Helper()
	f := freePort(t)
	f.Proto = proto
	_, port, err := net.SplitHostPort(guest.String())
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort("127.0.0.1:" + port)
	f.GuestPort = addr.Port()
	fw, err := newForwarding(f, func() netip.Addr { return loopback }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fw.Close() })
	return fw, netip.AddrPortFrom(f.HostAddr, f.HostPort).String()
}

// A client that has said all it has to say still gets the whole answer.
func TestForwardTCP(t *testing.T) {
	guest, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Close()
	answer := bytes.Repeat([]byte("answer\n"), 100_000)
	go func() {
		conn, err := guest.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		question, _ := io.ReadAll(conn)
		conn.Write(append(question, answer...))
	}()
	_, addr := forward(t, "tcp", guest.Addr())
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "question\n")
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if want := append([]byte("question\n"), answer...); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d bytes of %d, %v", len(got), len(want), err)
	}
}

// A guest that does not listen: the client learns it, and the next one gets in.
func TestForwardRefused(t *testing.T) {
	closed := freePort(t)
	_, addr := forward(t, "tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(closed.HostAddr, closed.HostPort)))
	for range 2 {
		conn, err := net.Dial("tcp", addr)
		if errors.Is(err, syscall.ECONNRESET) {
			continue // it learnt it at once
		}
		if err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(make([]byte, 1)); err == nil || n > 0 {
			t.Errorf("read %d bytes from a guest that does not listen", n)
		}
		conn.Close()
	}
}

// A host that is short of descriptors for a while does not end the forwarding.
func TestForwardAccepts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fw := &forwarding{log: slog.New(slog.DiscardHandler), ctx: t.Context()}
		answers := []error{syscall.EMFILE, syscall.ECONNABORTED, net.ErrClosed}
		began := time.Now()
		fw.serveTCP(func() (*net.TCPConn, error) {
			err := answers[0]
			answers = answers[1:]
			return nil, err
		})
		if len(answers) > 0 || time.Since(began) != 2*acceptPause {
			t.Errorf("gave up after %v, before %v", time.Since(began), answers)
		}
	})
}

// Close gives the port back and ends connections that are at work.
func TestForwardClose(t *testing.T) {
	guest, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Close()
	fw, addr := forward(t, "tcp", guest.Addr())
	client, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	end, err := guest.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer end.Close()
	if err := fw.Close(); err != nil {
		t.Fatal(err)
	}
	for _, conn := range []net.Conn{client, end} {
		if n, err := conn.Read(make([]byte, 1)); err == nil || n > 0 {
			t.Errorf("read %d bytes after the close", n)
		}
	}
	again, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatalf("the port is still taken: %v", err)
	}
	again.Close()
}

// Each client of UDP gets the answers to its own datagrams.
func TestForwardUDP(t *testing.T) {
	guest, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Close()
	go func() {
		buf := make([]byte, maxDatagram)
		for {
			n, from, err := guest.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			guest.WriteToUDPAddrPort(append([]byte("re: "), buf[:n]...), from)
		}
	}()
	fw, addr := forward(t, "udp", guest.LocalAddr())
	for _, name := range []string{"alice", "bob", strings.Repeat("x", 8000)} {
		client, err := net.Dial("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		for range 2 {
			io.WriteString(client, name)
			buf := make([]byte, maxDatagram)
			n, err := client.Read(buf)
			if err != nil || string(buf[:n]) != "re: "+name {
				t.Errorf("%.10s got %.20q, %v", name, buf[:n], err)
			}
		}
	}
	if err := fw.Close(); err != nil {
		t.Error(err)
	}
}

func TestForwardTaken(t *testing.T) {
	for _, proto := range []string{"tcp", "udp"} {
		f := freePort(t)
		f.Proto = proto
		first, err := newForwarding(f, func() netip.Addr { return loopback }, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		_, err = newForwarding(f, func() netip.Addr { return loopback }, slog.New(slog.DiscardHandler))
		want := "listen on " + netip.AddrPortFrom(f.HostAddr, f.HostPort).String() + "/" + proto + ": address already in use"
		if lack, ok := errors.AsType[*HostError](err); !ok || lack.Need != NeedPort || err.Error() != want {
			t.Errorf("second listener: %v, want %s", err, want)
		}
		if err := errors.Join(first.Close(), checkPort(profiles.Forward(f))); err != nil {
			t.Errorf("after the close: %v", err)
		}
	}
}
