package qemu

import (
	"flag"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func mac(last byte) net.HardwareAddr { return net.HardwareAddr{0x52, 0x54, 0, 0xaa, 0xbb, last} }

// direct is a machine that boots a kernel of its own.
func direct() Config {
	return Config{
		Name: "web", Machine: Q35, Accel: TCG, CPU: "max", CPUs: 2, Memory: 512 << 20,
		Kernel: "/boot/vmlinuz", Initrd: "/dev/fd/9", Cmdline: "console=ttyS0 quiet",
		NICs:    []NIC{{MAC: mac(1), Netdev: Tap{Queues: []FD{"6"}}, Queues: 1}},
		Ports:   []Port{{ID: "exit", Name: "org.vmrun.exit", FD: "5"}, {ID: "agent", Name: "org.vmrun.agent", FD: "12"}},
		Console: "3", QMP: "4", Paused: true, NoReboot: true,
	}
}

func configs() map[string]Config {
	micro := direct()

	microvm := direct()
	microvm.Machine, microvm.Accel = MicroVM, KVM
	microvm.Disks = []Disk{{Layers: []Image{{FD: "7", Format: "raw"}}}}
	microvm.NICs[0] = NIC{MAC: mac(1), Netdev: Tap{Queues: []FD{"8", "9"}}, Queues: 2, MTU: 9000}

	disk := Config{
		Name: "db", Machine: PC, Accel: KVM, CPU: "host,-vmx", CPUs: 1, Memory: 1<<30 + 1,
		Disks: []Disk{
			{Layers: []Image{{FD: "7", Format: "qcow2"}, {FD: "8", Format: "qcow2"}, {FD: "12", Format: "raw"}}, Throwaway: true},
			{Layers: []Image{{FD: "9", Format: "raw", Device: true}}},
		},
		NICs: []NIC{
			{MAC: mac(1), Netdev: Tap{Queues: []FD{"10", "11"}}, Queues: 2, MTU: 1400},
			{MAC: mac(2), Netdev: UserNet{}, Queues: 1},
		},
		Console: "3", QMP: "4", Paused: true, Extra: []string{"-device", "virtio-balloon-pci"},
	}

	user := direct()
	user.NICs[0].Netdev = UserNet{
		Hostname: "web",
		Forward: []Forward{
			{Proto: "tcp", Host: netip.MustParseAddrPort("127.0.0.1:8080"), Guest: 80},
			{Proto: "udp", Host: netip.MustParseAddrPort("0.0.0.0:5353"), Guest: 53},
		},
	}

	network := Config{
		Name: "pxe", Machine: Q35, Accel: TCG, CPU: "max", CPUs: 1, Memory: 256 << 20,
		NICs:    []NIC{{MAC: mac(1), Netdev: Tap{Queues: []FD{"5"}}, Queues: 1}},
		Console: "{console}", QMP: "{qmp}",
	}

	network.CPUs, network.MaxCPUs = 1, 3

	screen := direct()
	screen.Display = SPICE
	pxeScreen := network
	pxeScreen.Display = VNC

	commas := direct()
	commas.Name, commas.Kernel, commas.Cmdline = "a,b", "/boot/vm,linuz", "a=b,c"
	return map[string]Config{"micro": micro, "microvm": microvm, "disk": disk, "user": user, "network": network, "commas": commas,
		"spice": screen, "vnc": pxeScreen}
}

// text has one option with its value on each line.
func text(args []string) string {
	var b strings.Builder
	for _, a := range args {
		if strings.HasPrefix(a, "-") && b.Len() > 0 {
			b.WriteByte('\n')
		} else if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(a)
	}
	return b.String() + "\n"
}

func TestArgs(t *testing.T) {
	for name, config := range configs() {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join("testdata", name+".golden")
			got := text(config.Args())
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("arguments differ from %s (-want +got):\n%s", file, diff)
			}
		})
	}
}

func TestMemory(t *testing.T) {
	for bytes, want := range map[int64]string{512 << 20: "512M", 1 << 30: "1024M", 512e6: "500000K", 1<<20 + 1: "1025K"} {
		if got := memory(bytes); got != want {
			t.Errorf("memory(%d) = %s, want %s", bytes, got, want)
		}
	}
}
