package netsetup

import (
	"encoding/binary"
	"net"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLeak: a member's connection that a child of it has keeps that port, and
// nothing else.
func TestLeak(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	h := openedLAN(t, labGroup)
	guest := newPuppet(t, 1000, 7000)
	a, b := guest.must(guestPort(1)), guest.must(guestPort(2))
	child := guest.must(order{Do: "leak", At: a.At}).PID
	guest.kill()
	awaitReport(t, h, func(r Report) bool { return len(r.Members) == 1 && r.Members[0].Link == a.Link })
	if out, err := exec.Command("ip", "link", "show", b.Link).CombinedOutput(); err == nil {
		t.Errorf("%s is still there: %s", b.Link, out)
	}
	if out := newPuppet(t, 1000, 7000).does(guestPort(1)); !strings.Contains(out.Err, "on the network already") {
		t.Errorf("its name: %q", out.Err)
	}
	kill(t, child)
	awaitReport(t, h, func(r Report) bool { return len(r.Members) == 0 })
}

// frame is an Ethernet frame with tags between addresses and payload.
func frame(source MAC, payload string, tags ...uint16) []byte {
	f := slices.Concat([]byte{255, 255, 255, 255, 255, 255}, source[:])
	for _, tag := range tags {
		f = binary.BigEndian.AppendUint16(f, tag)
		f = binary.BigEndian.AppendUint16(f, 10)
	}
	f = binary.BigEndian.AppendUint16(f, 0x88b5) // for local experiments (IEEE 802)
	return append(append(f, payload...), make([]byte, 64)...)
}

// TestForgedFrames: what a member writes to its TAP by itself is guarded as its
// guest's frames are.
func TestForgedFrames(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	h := openedLAN(t, labGroup)
	guest := newPuppet(t, 1000, 7000)
	o := guestPort(1)
	a := guest.must(o)
	seen := capture(t, lan(t, h).Bridge)
	own, other := o.Port.MAC, testPort().MAC
	for _, f := range [][]byte{
		frame(other, "spoofed"), frame(own, "tagged", unix.ETH_P_8021Q), frame(own, "double", unix.ETH_P_8021AD, unix.ETH_P_8021Q),
		frame(own, "double", unix.ETH_P_8021Q, unix.ETH_P_8021Q), frame(own, "old", 0x9100), frame(own, "honest"),
	} {
		guest.must(order{Do: "frame", At: a.At, Data: f})
	}
	if got := seen(); got != "honest" {
		t.Errorf("the first frame on the bridge is %q", got)
	}
	awaitReport(t, h, func(r Report) bool { return r.Members[0].Sent.Packets == 6 && r.Members[0].Guarded == 5 })
}

// capture returns a function that waits for the next of our frames.
func capture(t *testing.T, link string) func() string {
	t.Helper()
	l, err := net.InterfaceByName(link)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: l.Index}); err != nil {
		t.Fatal(err)
	}
	return func() string {
		for {
			f := make([]byte, 2048)
			n, err := unix.Read(fd, f)
			if err != nil {
				t.Fatal(err)
			}
			for _, word := range []string{"spoofed", "tagged", "double", "old", "honest"} {
				if strings.Contains(string(f[:n]), word) {
					return word
				}
			}
		}
	}
}

func htons(v uint16) uint16 { return binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, v)) }

// TestForgedTAP: a member that changes its TAP by what the kernel lets its owner
// do has no port any more.
func TestForgedTAP(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	h := openedLAN(t, labGroup)
	changed := 0
	for i, o := range []order{{Do: "persist"}, {Do: "mac", Data: bytesOf(bridgeOf(specs()["nat"]))}} {
		guest := newPuppet(t, 1000, 7000)
		a := guest.must(guestPort(i))
		o.At = a.At
		out := guest.does(o)
		t.Logf("%s: %q", o.Do, out.Err)
		if out.Err != "" {
			continue // this kernel does not let it
		}
		changed++
		awaitReport(t, h, func(r Report) bool { return len(r.Members) == 0 })
		guest.kill()
		if out, err := exec.Command("ip", "link", "show", a.Link).CombinedOutput(); err == nil {
			t.Errorf("%s is still there: %s", a.Link, out)
		}
	}
	if changed == 0 {
		skip(t, "forged TAP", "this kernel lets a TAP's owner change nothing of it")
	}
}

func bytesOf(m MAC) []byte { return m[:] }
