package netsetup

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// puppet is a process of a user without root that does what the test says: as
// a member that behaves, or by any message and system call that it likes.
type puppet struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// order is one thing for a puppet to do.
type order struct {
	Do   string // attach, close, inspect, down, dial, send, receive, hang up, leak, frame, persist, mac
	At   int    // the number of the port or connection, from 0
	Spec Spec
	Port PortSpec
	Data []byte
}

// outcome is what became of it.
type outcome struct {
	Err   string
	At    int
	Link  string
	IP    string
	Reply reply
	Files int
	PID   int
}

// puppetHost is what the puppet's netsetup works with: root's networks.
var puppetHost = Host{Runtime: "/run/guest", RootRuntime: "/run/vmrun"}

// rootHost is the host of tests with puppets, whose folders others may pass.
func rootHost(t *testing.T) Host {
	t.Helper()
	h := testHost(t)
	h.Runtime = puppetHost.RootRuntime
	return h
}

// newPuppet starts a puppet with a user and its groups, the first of which is
// the primary one. It may not even read the folder that the test binary is in.
func newPuppet(t *testing.T, uid uint32, groups ...uint32) *puppet {
	t.Helper()
	return newPuppetIn(t, 0, uid, groups...)
}

// newPuppetIn is newPuppet in new namespaces (clone(2)).
func newPuppetIn(t *testing.T, namespaces uintptr, uid uint32, groups ...uint32) *puppet {
	t.Helper()
	const copy = "/run/puppet"
	if _, err := os.Stat(copy); err != nil {
		text, err := os.ReadFile(os.Args[0])
		if err == nil {
			err = os.WriteFile(copy, text, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(copy, "puppet")
	cmd.Dir, cmd.Stderr = "/", os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces,
		Credential: &syscall.Credential{Uid: uid, Gid: groups[0], Groups: groups[1:]}}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &puppet{t: t, cmd: cmd, in: in, out: bufio.NewReader(out)}
	t.Cleanup(p.kill)
	return p
}

func (p *puppet) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

// does has the puppet do something and returns the outcome.
func (p *puppet) does(o order) outcome {
	p.t.Helper()
	if err := json.NewEncoder(p.in).Encode(o); err != nil {
		p.t.Fatal(err)
	}
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		p.t.Fatalf("puppet, told to %s: %v", o.Do, err)
	}
	var out outcome
	if err := json.Unmarshal(line, &out); err != nil {
		p.t.Fatal(err)
	}
	return out
}

// must is does for what can't fail.
func (p *puppet) must(o order) outcome {
	p.t.Helper()
	out := p.does(o)
	if out.Err != "" {
		p.t.Fatalf("puppet, told to %s: %s", o.Do, out.Err)
	}
	return out
}

// asks sends a request on a connection of its own and returns the answer.
func (p *puppet) asks(r request) outcome {
	p.t.Helper()
	text, err := json.Marshal(r)
	if err != nil {
		p.t.Fatal(err)
	}
	at := p.must(order{Do: "dial"}).At
	p.must(order{Do: "send", At: at, Data: text})
	out := p.must(order{Do: "receive", At: at})
	out.At = at
	return out
}

// bePuppet is the process.
func bePuppet() {
	b := &body{}
	in := json.NewDecoder(os.Stdin)
	out := json.NewEncoder(os.Stdout)
	for {
		var o order
		if in.Decode(&o) != nil {
			os.Exit(0)
		}
		result, err := b.do(o)
		if err != nil {
			result.Err = err.Error()
		}
		out.Encode(result)
	}
}

type body struct {
	ports []*Port
	conns []*net.UnixConn
}

// puppetNet is the folder of the network that puppets dial.
func puppetNet() string {
	return filepath.Join(netsFolder(puppetHost.RootRuntime), specs()["nat"].folder())
}

func (b *body) do(o order) (outcome, error) {
	switch o.Do {
	case "attach":
		p, err := Attach(context.Background(), puppetHost, o.Spec, o.Port)
		if err != nil {
			return outcome{}, err
		}
		b.ports = append(b.ports, p)
		return outcome{At: len(b.ports) - 1, Link: p.Link(), IP: p.IP().String()}, nil
	case "close":
		return outcome{}, b.ports[o.At].Close()
	case "inspect":
		r, err := Inspect(context.Background(), puppetHost, "lan", o.Spec.Dir)
		return outcome{At: len(r.Members)}, err
	case "down":
		return outcome{}, Down(context.Background(), puppetHost, "lan", o.Spec.Dir)
	case "dial":
		c, err := dialKeeper(puppetNet())
		b.conns = append(b.conns, c)
		return outcome{At: len(b.conns) - 1}, err
	case "send":
		_, err := b.conns[o.At].Write(o.Data)
		return outcome{}, err
	case "receive":
		var out outcome
		files, err := receive(b.conns[o.At], &out.Reply)
		out.Files = len(files)
		return out, errors.Join(err, closeAll(files))
	case "hang up":
		return outcome{}, b.conns[o.At].Close()
	}
	return b.abuse(o)
}

// abuse does what a member has no reason to.
func (b *body) abuse(o order) (outcome, error) {
	if o.Do == "leak" {
		return b.leak(b.ports[o.At])
	}
	tap := b.ports[o.At].Files()[0]
	switch o.Do {
	case "frame":
		_, err := tap.Write(append(make([]byte, 10), o.Data...)) // struct virtio_net_hdr first
		return outcome{}, err
	case "persist":
		return outcome{}, unix.IoctlSetInt(int(tap.Fd()), unix.TUNSETPERSIST, 1)
	case "mac":
		var ifr [40]byte
		*(*uint16)(unsafe.Pointer(&ifr[unix.IFNAMSIZ])) = unix.ARPHRD_ETHER
		copy(ifr[unix.IFNAMSIZ+2:], o.Data)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, tap.Fd(), unix.SIOCSIFHWADDR, uintptr(unsafe.Pointer(&ifr)))
		if errno != 0 {
			return outcome{}, errno
		}
		return outcome{}, nil
	}
	return outcome{}, fmt.Errorf("unknown order %q", o.Do)
}

// leak passes a port's connection on to a process that outlives this one.
func (b *body) leak(p *Port) (outcome, error) {
	conn, err := p.conn.File()
	if err != nil {
		return outcome{}, err
	}
	defer conn.Close()
	cmd := exec.Command("/bin/sleep", "1000")
	cmd.ExtraFiles = []*os.File{conn}
	if err := cmd.Start(); err != nil {
		return outcome{}, err
	}
	return outcome{PID: cmd.Process.Pid}, nil
}
