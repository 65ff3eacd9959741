package world_test

import (
	"context"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
	"github.com/vmrun/vmrun/integration/internal/world"
)

func TestMain(m *testing.M) {
	sandbox.Main()
	os.Exit(m.Run())
}

func TestLAN(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, "busybox")
		host, lan := sandbox.Current(t), world.NewLAN(t)
		lan.Uplink(t, host, "eth1")
		world.ServeHTTP(t, lan.Gateway, world.Gateway+":80")
		lan.ServeDNS(t)
		neighbour := lan.Machine(t, "192.0.2.3/24")

		if err := world.Ping(host, "192.0.2.3"); err != nil {
			t.Error(err)
		}
		if err := world.Ping(host, "192.0.2.4"); err == nil {
			t.Error("an absent machine answers")
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		for ns, want := range map[*sandbox.Namespace]string{host: "hello 192.0.2.2\n", neighbour: "hello 192.0.2.3\n"} {
			if got, err := world.Fetch(ctx, ns, world.Gateway); err != nil || got != want {
				t.Errorf("fetch: %q, %v; want %q", got, err, want)
			}
		}
		if got, err := net.DefaultResolver.LookupHost(ctx, world.Domain); err != nil || got[0] != world.Gateway {
			t.Errorf("resolve: %v, %v; want %s", got, err, world.Gateway)
		}
	})
}

func TestDHCP(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, "dnsmasq", "udhcpc")
		lan, client := world.NewLAN(t), sandbox.NewNamespace(t)
		lan.ServeDHCP(t)
		lan.Plug(t, client, "eth0")
		err := client.Do(func() error {
			out, err := exec.Command("udhcpc", "-i", "eth0", "-n", "-q", "-f", "-s", "/bin/true").CombinedOutput()
			if !strings.Contains(string(out), "lease of 192.0.2.1") {
				t.Errorf("no lease:\n%s", out)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// A tag is seen although the kernel takes it out of the frame.
func TestTapSeesTags(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		a, b := sandbox.NewNamespace(t), sandbox.NewNamespace(t)
		world.Wire(t, a, "trunk0", b, "trunk1")
		world.SetUp(t, a, "trunk0")
		world.SetUp(t, b, "trunk1")
		from, to := world.NewTap(t, a, "trunk0"), world.NewTap(t, b, "trunk1")
		frame := append(make([]byte, 0, 64), 2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x81, 0, 0, 10, 0x88, 0xb5)
		if err := from.Send(append(frame, "hello"...)); err != nil {
			t.Fatal(err)
		}
		got := to.Wait(t, 5*time.Second, func(f world.Frame) bool { return f.Type == 0x88b5 })
		if got.VLAN != 10 || !strings.HasPrefix(string(got.Payload), "hello") {
			t.Errorf("got %v %q; want vlan 10 and the payload", got, got.Payload)
		}
	})
}
