package libvirt

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"
)

func TestParseNetwork(t *testing.T) {
	prefixes := func(texts ...string) (all []netip.Prefix) {
		for _, text := range texts {
			all = append(all, netip.MustParsePrefix(text))
		}
		return all
	}
	tests := []struct {
		name, text string
		want       Network
		fails      bool
	}{
		{"default", `<network connections='2'>
			<name>default</name><uuid>f1d9</uuid><forward mode='nat'><nat><port start='1024' end='65535'/></nat></forward>
			<bridge name='virbr0' stp='on' delay='0'/><mac address='52:54:00:00:00:01'/>
			<ip address='192.168.122.1' netmask='255.255.255.0'><dhcp><range start='192.168.122.2' end='192.168.122.254'/></dhcp></ip>
			</network>`, Network{Name: "default", Mode: "nat", Bridge: "virbr0", Ranges: prefixes("192.168.122.0/24")}, false},
		{"isolated, two families, a route, jumbo frames", `<network><name>lab &amp; co</name><bridge name='virbr7'/><mtu size='9000'/>
			<ip family='ipv6' address='2001:db8::1' prefix='64'/><ip address='10.1.2.3' prefix='16'/>
			<route address='172.16.0.0' prefix='12' gateway='10.1.0.9'/></network>`,
			Network{Name: "lab & co", Bridge: "virbr7", MTU: 9000, Ranges: prefixes("2001:db8::/64", "10.1.0.0/16", "172.16.0.0/12")}, false},
		{"forward without mode", `<network><name>a</name><forward dev='eth0'/><bridge name='b'/></network>`,
			Network{Name: "a", Mode: "nat", Bridge: "b"}, false},
		{"classes", `<network><ip address='10.1.2.3'/><ip address='172.16.1.1'/><ip address='192.168.1.1'/><ip address='fd00::1'/></network>`,
			Network{Ranges: prefixes("10.0.0.0/8", "172.16.0.0/16", "192.168.1.0/24", "fd00::/64")}, false},
		{"no bridge", `<network><name>pass</name><forward mode='hostdev'><pf dev='eth3'/></forward></network>`,
			Network{Name: "pass", Mode: "hostdev"}, false},
		{"no XML", "default", Network{}, true},
		{"no address", `<network><ip address='here'/></network>`, Network{}, true},
		{"no mask", `<network><ip address='10.0.0.1' netmask='wide'/></network>`, Network{}, true},
		{"no length", `<network><ip address='10.0.0.1' prefix='33'/></network>`, Network{}, true},
	}
	for _, tt := range tests {
		got, err := parseNetwork(tt.text)
		if (err != nil) != tt.fails {
			t.Errorf("%s: error %v", tt.name, err)
			continue
		}
		if diff := cmp.Diff(tt.want, got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// listen serves connections on a unix socket.
func listen(t *testing.T, serve func(net.Conn)) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
	return socket
}

// TestUselessDaemons: whatever is at the socket, a question ends with an error,
// at the latest when its context does.
func TestUselessDaemons(t *testing.T) {
	says := func(text string) func(net.Conn) {
		return func(conn net.Conn) {
			io.WriteString(conn, text)
			io.Copy(io.Discard, conn)
		}
	}
	tests := []struct {
		name  string
		serve func(net.Conn)
		hangs bool // until the context ends
		want  string
	}{
		{"hangs", func(conn net.Conn) { io.Copy(io.Discard, conn) }, true, "does not answer"},
		{"does not even read", func(conn net.Conn) { <-t.Context().Done() }, true, "does not answer"},
		{"hangs up", func(net.Conn) {}, false, "ask libvirt"},
		{"hangs up after the question", func(conn net.Conn) { conn.Read(make([]byte, 16)) }, false, "ask libvirt"},
		{"too short a packet", says("\x00\x00\x00\x04"), false, "not libvirt's protocol"},
		{"too long a packet", says("HTTP/1.1 400 Bad Request\r\n"), false, "not libvirt's protocol"},
		{"half a packet", says("\x00\x00\x00\x1c\x20\x00\x80\x86"), true, "does not answer"},
		{"an answer to nobody", says("\x00\x00\x00\x1c" + strings.Repeat("\x00", 24)), true, "does not answer"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			limit := time.Minute
			if tt.hangs {
				limit = 100 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			_, err := Daemon{Sockets: []string{listen(t, tt.serve)}}.Networks(ctx)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v; want %q", err, tt.want)
			}
			if got := errors.Is(err, context.DeadlineExceeded); got != tt.hangs {
				t.Errorf("the deadline passed: %v; want %v", got, tt.hangs)
			}
			if errors.Is(err, ErrAbsent) || errors.Is(err, unix.EINVAL) {
				t.Errorf("error %v hides what happened", err)
			}
		})
	}
}

// TestNoDaemon: a socket that is not there, or at which nobody listens any more,
// is passed over; one that is refused is not.
func TestNoDaemon(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, "left")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: left})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	d := Daemon{Sockets: []string{filepath.Join(dir, "absent"), left, filepath.Join(left, "below")}}
	if _, err := d.Networks(t.Context()); !errors.Is(err, ErrAbsent) {
		t.Errorf("error %v, want %v", err, ErrAbsent)
	}
	asked := make(chan bool, 1)
	d.Sockets = append(d.Sockets, listen(t, func(net.Conn) { asked <- true }))
	if _, err := d.Networks(t.Context()); errors.Is(err, ErrAbsent) {
		t.Error(err)
	}
	<-asked
	plain := filepath.Join(dir, "plain")
	if err := os.Mkdir(plain, 0); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		return // who is refused nothing
	}
	d.Sockets = []string{filepath.Join(plain, "sock")}
	if _, err := d.Networks(t.Context()); err == nil || errors.Is(err, ErrAbsent) {
		t.Errorf("error %v", err)
	}
}
