package vm

import (
	"encoding/json"
	"errors"
	"flag"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vmrun/vmrun/netsetup"
	"github.com/vmrun/vmrun/profiles"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// sampleHost is an ordinary machine, used by alice behind sudo.
func sampleHost() Host {
	return Host{
		Executable: "/usr/bin/vmrun", QEMU: "/usr/bin/qemu-system-x86_64", QEMUImg: "/usr/bin/qemu-img", Busybox: "/usr/bin/busybox",
		Kernel: "/boot/vmlinuz-6.1.0-1-amd64", KernelDirs: []string{"/boot"},
		Dirs:       Dirs{Runtime: "/run/vmrun", State: "/var/lib/vmrun", Cache: "/var/cache/vmrun"},
		Privileged: true,
		User:       User{Name: "alice", UID: 1000, GID: 1000, Groups: []uint32{27}},
		KVM:        Device{Path: "/dev/kvm", GID: 105, Mode: 0o660},
		MachineID:  "0123456789abcdef0123456789abcdef",
		LookupUser: func(name string) (User, error) {
			if name != "vmuser" {
				return User{}, errors.New("unknown user " + name)
			}
			return User{Name: name, UID: 990, GID: 990}, nil
		},
	}
}

func micro(network profiles.Network, nic profiles.NIC) profiles.Profile {
	nic.Network, nic.Queues = network.Name, max(nic.Queues, 1)
	return profiles.Profile{
		Name: "web", File: "/srv/web.toml",
		Machine:  profiles.Machine{CPUs: 2, Memory: 512 << 20, Accel: profiles.AccelAuto, Type: profiles.Q35, CPU: "max"},
		Boot:     profiles.Boot{Kernel: profiles.KernelAuto, Initrd: profiles.InitrdMicro, Command: []string{"sh", "-c", "true"}},
		NICs:     []profiles.NIC{nic},
		Networks: map[string]profiles.Network{network.Name: network},
	}
}

func sampleProfiles() map[string]profiles.Profile {
	lan := profiles.Network{
		Name: "lan", Dir: "/srv", Subnet: netip.MustParsePrefix("10.70.0.0/24"), Address: netip.MustParsePrefix("10.70.0.1/24"),
		DHCP: true, DNS: true, HostAccess: profiles.HostServices, Firewall: profiles.FirewallAuto,
	}
	in := func(mode profiles.Mode, change func(*profiles.Network)) profiles.Network {
		n := lan
		n.Mode = mode
		change(&n)
		return n
	}
	none := func(*profiles.Network) {}
	web := []profiles.Forward{{HostAddr: loopback, HostPort: 8080, GuestPort: 80, Proto: "tcp"}}

	disk := micro(in(profiles.NAT, none), profiles.NIC{})
	disk.Boot = profiles.Boot{}
	disk.Machine.Accel, disk.Machine.Type, disk.Machine.User = profiles.AccelTCG, profiles.PC, "vmuser"
	disk.Machine.CPU, disk.Machine.Args = "host", []string{"-device", "virtio-balloon-pci"}
	disk.Disks = []profiles.Disk{{Path: "/img/root.qcow2", Format: profiles.FormatAuto}, {Path: "/img/data.raw", Format: profiles.FormatRaw, Keep: true}}

	disk.Machine.Display = profiles.DisplayVNC

	own := micro(profiles.Network{Name: "user", Mode: profiles.User, Shared: true}, profiles.NIC{})
	own.Machine.Type = profiles.MicroVM
	own.Boot = profiles.Boot{Kernel: "/srv/vmlinux", Initrd: "/srv/initrd.img", Cmdline: "debug"}

	bridge := profiles.Network{Name: "lan", Dir: "/srv", Mode: profiles.Bridge, Bridge: "br0", Firewall: profiles.FirewallAuto}
	return map[string]profiles.Profile{
		"nat":       micro(in(profiles.NAT, none), profiles.NIC{IP: netip.MustParseAddr("10.70.0.10"), Forward: web}),
		"host-only": micro(in(profiles.HostOnly, func(n *profiles.Network) { n.MTU = 1400 }), profiles.NIC{Queues: 2, Spoof: true}),
		"bridge":    micro(bridge, profiles.NIC{MAC: net.HardwareAddr{0x52, 0x54, 0, 1, 2, 3}, Trunk: true}),
		"vlan": micro(in(profiles.VLAN, func(n *profiles.Network) { n.Uplink, n.VLAN, n.Tenant = "eth1", 10, "acme" }),
			profiles.NIC{}),
		"user":    micro(profiles.Network{Name: "user", Mode: profiles.User, Shared: true}, profiles.NIC{Forward: web}),
		"disk":    disk,
		"microvm": own,
	}
}

// planText has the plan as JSON and the command with an option on each line.
func planText(t *testing.T, plan *Plan, h Host) string {
	t.Helper()
	text, err := json.MarshalIndent(plan, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	command := strings.ReplaceAll(strings.Join(plan.Command(h), " "), " -", "\n-")
	return string(text) + "\n\n" + command + "\n"
}

func TestPlans(t *testing.T) {
	for name, p := range sampleProfiles() {
		t.Run(name, func(t *testing.T) {
			h := sampleHost()
			plan, err := NewPlan(&p, h)
			if err != nil {
				t.Fatal(err)
			}
			got, file := planText(t, plan, h), filepath.Join("testdata", name+".golden")
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
				t.Errorf("plan differs from %s (-want +got):\n%s", file, diff)
			}
			var again Plan
			if err := json.Unmarshal([]byte(strings.SplitN(got, "\n\n", 2)[0]), &again); err != nil {
				t.Errorf("the plan's JSON does not read back: %v", err)
			}
			// A supervisor in the background gets it so.
			if !reflect.DeepEqual(plan, &again) {
				t.Errorf("the plan's JSON reads back as\n%+v, was\n%+v", again, *plan)
			}
		})
	}
}

func TestPlanLacks(t *testing.T) {
	for name, test := range map[string]struct {
		profile string
		change  func(*profiles.Profile, *Host)
		need    Need
		want    string
	}{
		"qemu": {"user", func(_ *profiles.Profile, h *Host) { h.QEMU = "" }, NeedQEMU, "find QEMU: no qemu-system-x86_64 in PATH"},
		"kernel": {"user", func(_ *profiles.Profile, h *Host) { h.Kernel = "" }, NeedKernel,
			"find kernel: no vmlinuz-* in /boot: install one, on Debian the package linux-image-cloud-amd64"},
		"unknown user": {"user", func(p *profiles.Profile, _ *Host) { p.Machine.User = "nobody2" }, NeedUser,
			`look up machine.user "nobody2": unknown user nobody2`},
		"no KVM": {"user", func(p *profiles.Profile, h *Host) { p.Machine.Accel, h.KVM = profiles.AccelKVM, Device{} }, NeedKVM,
			"use KVM: this host has no /dev/kvm"},
		"closed KVM": {"user", func(p *profiles.Profile, h *Host) { p.Machine.Accel, h.KVM.Mode = profiles.AccelKVM, 0o600 }, NeedKVM,
			"use KVM: user alice may not open /dev/kvm (mode 0600, group 105)"},
		"qemu-img": {"disk", func(_ *profiles.Profile, h *Host) { h.QEMUImg = "" }, NeedQEMUImg,
			"prepare disk /img/root.qcow2: no qemu-img in PATH"},
	} {
		t.Run(name, func(t *testing.T) {
			p, h := sampleProfiles()[test.profile], sampleHost()
			test.change(&p, &h)
			_, err := NewPlan(&p, h)
			lack, ok := errors.AsType[*HostError](err)
			if !ok || lack.Need != test.need || err.Error() != test.want {
				t.Errorf("NewPlan returned %v, want %s: %s", err, test.need, test.want)
			}
		})
	}
}

// What takes root is planned without, and then not launched.
func TestPlanNeedsRoot(t *testing.T) {
	for profile, want := range map[string]string{
		"nat":    "use network lan: mode nat needs root, as it makes a bridge and firewall rules and turns forwarding on; only mode user does not",
		"bridge": "use network lan: mode bridge needs root, as it puts a TAP device into a bridge; only mode user does not",
		"user":   "run QEMU as user vmuser: only root can",
	} {
		p, h := sampleProfiles()[profile], sampleHost()
		h.EUID, h.Privileged = 1000, false
		h.Dirs.Runtime = filepath.Join(t.TempDir(), "run")
		if profile == "user" {
			p.Machine.User = "vmuser"
		}
		p.NICs = append(p.NICs, p.NICs[0])
		plan, err := NewPlan(&p, h)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{want}, plan.NeedsRoot); diff != "" {
			t.Errorf("%s needs root (-want +got):\n%s", profile, diff)
		}
		_, err = Launch(t.Context(), plan, h, Options{})
		lack, ok := errors.AsType[*HostError](err)
		if !ok || lack.Need != NeedPrivilege || lack.Error() != want {
			t.Errorf("launch of %s returned %v, want %s", profile, err, want)
		}
		if _, err := os.Stat(h.Dirs.Runtime); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("launch of %s has begun (%v)", profile, err)
		}
	}
}

// The micro guest does not wait for leases that nobody can give.
func TestLeaseTimeout(t *testing.T) {
	for profile, want := range map[string]time.Duration{
		"host-only": noLeaseTimeout, "nat": noLeaseTimeout, "vlan": 0, "bridge": 0, "user": 0,
	} {
		p := sampleProfiles()[profile]
		for name, n := range p.Networks {
			n.DHCP = false
			p.Networks[name] = n
		}
		plan, err := NewPlan(&p, sampleHost())
		if err != nil {
			t.Fatal(err)
		}
		if got := plan.Micro.LeaseTimeout; got != want {
			t.Errorf("%s without DHCP: %v, want %v", profile, got, want)
		}
	}
}

func TestPlanWarns(t *testing.T) {
	p, h := sampleProfiles()["user"], sampleHost()
	h.User, h.KVM = User{Name: "root"}, Device{}
	plan, err := NewPlan(&p, h)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"QEMU runs as root: nothing says whose it is (machine.user, or sudo)",
		"no KVM, so the guest runs many times slower: this host has no /dev/kvm",
	}
	if diff := cmp.Diff(want, plan.Warnings); diff != "" {
		t.Errorf("warnings differ (-want +got):\n%s", diff)
	}
}

// Where hosts share a wire, the same profile gives another address on each.
func TestMACs(t *testing.T) {
	a, b := sampleHost(), sampleHost()
	b.MachineID = "fedcba9876543210fedcba9876543210"
	mac := func(profile string, h Host) netsetup.MAC {
		p := sampleProfiles()[profile]
		plan, err := NewPlan(&p, h)
		if err != nil {
			t.Fatal(err)
		}
		return plan.NICs[0].MAC
	}
	for profile, same := range map[string]bool{"nat": true, "host-only": true, "user": true, "vlan": false} {
		if (mac(profile, a) == mac(profile, b)) != same {
			t.Errorf("%s: two hosts give %s and %s", profile, mac(profile, a), mac(profile, b))
		}
	}
}
