package world

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/vmrun/vmrun/integration/internal/sandbox"
)

// ServeHTTP answers every request that reaches a namespace on address:port with
// "hello ADDRESS", the asker's, and a newline.
func ServeHTTP(t *testing.T, ns *sandbox.Namespace, address string) {
	t.Helper()
	var listener net.Listener
	err := ns.Do(func() (err error) {
		listener, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		t.Fatalf("serve HTTP: %v", err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, "hello %s\n", from)
	})}
	server.SetKeepAlivesEnabled(false)
	done := make(chan error)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("serve HTTP: %v", err)
		}
	})
}

// Fetch gets http://ADDRESS/ from within a namespace and returns the answer's
// text.
func Fetch(ctx context.Context, ns *sandbox.Namespace, address string) (string, error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		// The context that comes with the call outlives the request.
		DialContext: func(_ context.Context, network, address string) (conn net.Conn, err error) {
			err = ns.Do(func() error {
				conn, err = new(net.Dialer).DialContext(ctx, network, address)
				return err
			})
			return conn, err
		},
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return string(text), err
}

// ServeDNS answers on the gateway's port 53, and names the gateway in the
// sandbox's /etc/resolv.conf.
func (l *LAN) ServeDNS(t *testing.T) {
	t.Helper()
	ServeDNS(t, l.Gateway, Gateway)
	NameResolver(t, Gateway)
}

// NameResolver names a server in the sandbox's /etc/resolv.conf.
func NameResolver(t *testing.T, address string) {
	t.Helper()
	if err := os.WriteFile("/etc/resolv.conf", []byte("nameserver "+address+"\n"), 0o644); err != nil {
		t.Fatalf("name resolver: %v", err)
	}
}

// ServeDNS answers in a namespace at an address' port 53, over UDP and TCP: Domain
// has the LAN's gateway's address, no other name exists.
func ServeDNS(t *testing.T, ns *sandbox.Namespace, address string) {
	t.Helper()
	servers := []*dns.Server{{}, {}}
	err := ns.Do(func() (err error) {
		if servers[0].PacketConn, err = net.ListenPacket("udp", address+":53"); err != nil {
			return err
		}
		servers[1].Listener, err = net.Listen("tcp", address+":53")
		return err
	})
	if err != nil {
		t.Fatalf("serve DNS: %v", err)
	}
	for _, server := range servers {
		started := make(chan struct{})
		server.Handler = dns.HandlerFunc(answer)
		server.NotifyStartedFunc = func() { close(started) }
		go server.ActivateAndServe()
		<-started
		t.Cleanup(func() { server.Shutdown() })
	}
}

func answer(w dns.ResponseWriter, question *dns.Msg) {
	reply := new(dns.Msg).SetReply(question)
	q := question.Question[0]
	switch {
	case q.Name != Domain+".":
		reply.Rcode = dns.RcodeNameError
	case q.Qtype == dns.TypeA:
		reply.Answer = []dns.RR{&dns.A{
			Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60},
			A:   netip.MustParseAddr(Gateway).AsSlice(),
		}}
	}
	w.WriteMsg(reply) // a client that went away asks again or doesn't
}

// ServeDHCP runs dnsmasq on the gateway, with leases from 192.0.2.100 on. What
// it did is shown if the test fails.
func (l *LAN) ServeDHCP(t *testing.T) {
	t.Helper()
	ServeDnsmasq(t, l.Gateway, "IP range 192.0.2.100", "--port=0", "--bind-interfaces", "--interface="+switchName,
		"--dhcp-authoritative", "--dhcp-range=192.0.2.100,192.0.2.199,255.255.255.0,1h")
}

// ServeDnsmasq runs dnsmasq in a namespace with the given options and no other
// configuration, and waits until it has said what it says when it serves. What it
// did is shown if the test fails.
func ServeDnsmasq(t *testing.T, ns *sandbox.Namespace, serves string, options ...string) {
	t.Helper()
	cmd := exec.Command("dnsmasq", append([]string{"--keep-in-foreground", "--conf-file=/dev/null", "--log-facility=-",
		"--user=root", "--group=", "--no-ping", "--no-resolv", "--no-hosts",
		"--pid-file=" + filepath.Join(t.TempDir(), "pid"), "--dhcp-leasefile=" + filepath.Join(t.TempDir(), "leases")},
		options...)...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Do(cmd.Start); err != nil {
		t.Fatalf("start dnsmasq: %v", err)
	}
	var said []string
	ready, done := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(done)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			if strings.Contains(lines.Text(), serves) {
				select {
				case ready <- struct{}{}:
				default: // it has said so before
				}
			}
			said = append(said, lines.Text())
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-done
		cmd.Wait() // it was killed
		if t.Failed() {
			t.Logf("dnsmasq said:\n%s", strings.Join(said, "\n"))
		}
	})
	select {
	case <-ready:
	case <-done:
		t.Fatal("dnsmasq ended before it served")
	case <-time.After(10 * time.Second):
		t.Fatal("dnsmasq does not serve")
	}
}
