package sandbox

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

func TestRunIsAlone(t *testing.T) {
	Run(t, func(t *testing.T) {
		if os.Getpid() == 1 {
			t.Error("the test is process 1; it would have to reap")
		}
		links, err := netlink.LinkList()
		if err != nil || len(links) != 1 {
			t.Errorf("links: %v, %v; want the loopback alone", links, err)
		}
		for _, dir := range []string{"/run", "/sys/class/net"} {
			entries, err := os.ReadDir(dir)
			if err != nil || len(entries) > 1 {
				t.Errorf("%s: %v, %v; want an own one", dir, entries, err)
			}
		}
		if err := os.WriteFile("/etc/resolv.conf", []byte("nameserver 192.0.2.1\n"), 0o644); err != nil {
			t.Error(err)
		}
	})
}

func TestRunPassesSkipsOn(t *testing.T) {
	skipped := false
	t.Run("inner", func(t *testing.T) {
		t.Cleanup(func() { skipped = t.Skipped() })
		Run(t, func(t *testing.T) { t.Skip("as asked") })
	})
	t.Cleanup(func() {
		if !skipped {
			t.Error("the skip was lost")
		}
	})
}

func TestVerdict(t *testing.T) {
	var out strings.Builder
	v := &verdict{out: &out, name: "TestA"}
	for _, part := range []string{"=== RUN   TestA\n    a.go:1: he", "llo\r\n--- FA", "IL: TestA (0.1s)\nFAIL\nkernel: exit 1\n[    8.5] reboot: Power down\n a.go:2: reboot: no\nlast"} {
		if _, err := v.Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
	}
	v.flush()
	if want := "    a.go:1: hello\n a.go:2: reboot: no\nlast\n"; out.String() != want || !v.failed || v.passed {
		t.Errorf("got %q, failed %v, passed %v; want %q, true, false", out.String(), v.failed, v.passed, want)
	}
}

// TestReport: what a test in a sandbox tells for a report is kept by the process
// outside, and is no part of its log.
func TestReport(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "reports")
	t.Setenv(reportVariable, dir)
	var out strings.Builder
	v := &verdict{out: &out, name: "TestA", report: new(reports).add}
	for _, part := range []string{"    report: steps.txt nat: kil", "led\nreport: steps.txt 1 case\r\n    a.go:1: hello\n"} {
		if _, err := v.Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "steps.txt"))
	if want := "nat: killed\n1 case\n"; string(text) != want || err != nil || v.err != nil {
		t.Errorf("the report says %q, %v, %v; want %q", text, err, v.err, want)
	}
	if want := "    a.go:1: hello\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

func TestNamespaceKeepsSockets(t *testing.T) {
	Run(t, func(t *testing.T) {
		other := NewNamespace(t)
		var l net.Listener
		err := other.Do(func() (err error) {
			l, err = net.Listen("tcp", "127.0.0.1:80")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if c, err := net.Dial("tcp", "127.0.0.1:80"); err == nil {
			c.Close()
			t.Error("the socket is reached from the test's own network")
		}
		err = other.Do(func() error {
			c, err := net.Dial("tcp", "127.0.0.1:80")
			if err == nil {
				c.Close()
			}
			return err
		})
		if err != nil {
			t.Errorf("reach the socket from its network: %v", err)
		}
	})
}

func TestCommandIsOnAnotherHost(t *testing.T) {
	Run(t, func(t *testing.T) {
		other := NewNamespace(t)
		link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "there"}}
		if err := other.Links().LinkAdd(link); err != nil {
			t.Fatal(err)
		}
		const id = "0123456789abcdef0123456789abcdef"
		cmd := Command(t, id, "sh", "-c", "cat /etc/machine-id; ls /sys/class/net")
		var out []byte
		err := other.Do(func() (err error) {
			out, err = cmd.Output()
			return err
		})
		if got, want := string(out), id+"\nlo\nthere\n"; err != nil || got != want {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	})
}

// Under User-Mode Linux there is what vlan networks need.
func TestUML(t *testing.T) {
	RunUML(t, func(t *testing.T) {
		const script = `
			ip link add trunk0 type veth peer trunk1
			ip netns add other && ip link set trunk1 netns other
			for n in "" "-n other"; do
				ip $n link add br0 type bridge
				ip $n link set br0 up
			done
			ip link set trunk0 up
			ip -n other link set trunk1 up
			ip link add link trunk0 name v10 type vlan id 10
			ip -n other link add link trunk1 name v10 type vlan id 10
			ip link set v10 up master br0
			ip -n other link set v10 up master br0
			ip addr add 10.0.0.1/24 dev br0
			ip -n other addr add 10.0.0.2/24 dev br0
			busybox ping -c1 -W5 10.0.0.2
			ip tuntap add tap0 mode tap
			ip link set tap0 master br0
			iptables-legacy -t nat -A POSTROUTING -s 10.0.0.0/24 -j MASQUERADE
			iptables-legacy -t nat -S | grep MASQUERADE
			tc qdisc add dev tap0 clsact
			tc filter add dev tap0 ingress bpf direct-action bytecode '1,6 0 0 0' 
			tc filter show dev tap0 ingress`
		out, err := exec.Command("sh", "-exc", script).CombinedOutput()
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

// Under QEMU there is what vlan networks by nftables need.
func TestQEMU(t *testing.T) {
	RunQEMU(t, func(t *testing.T) {
		const script = `
			ip link add trunk0 type veth peer trunk1
			ip link add link trunk0 name v10 type vlan id 10
			ip link add br0 type bridge
			ip link set v10 master br0
			ip tuntap add tap0 mode tap
			nft add table ip t
			nft add chain ip t out '{ type nat hook postrouting priority 0; }'
			nft add rule ip t out masquerade
			nft add chain ip t through '{ type filter hook forward priority 0; }'
			nft add rule ip t through reject`
		out, err := exec.Command("sh", "-exc", script).CombinedOutput()
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
}
