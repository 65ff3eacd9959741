package main

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmrun/vmrun/netsetup"
	"github.com/vmrun/vmrun/netsetup/firewall"
	"github.com/vmrun/vmrun/vm"
)

// goodFiles are a host's that lacks nothing.
var goodFiles = map[string]string{
	"dev/kvm":                           "",
	"dev/net/tun":                       "",
	"lib/modules/6.1.0/modules.builtin": "kernel/net/8021q/8021q.ko\n",
	"lib/modules/6.1.0/modules.dep":     "kernel/net/sched/cls_bpf.ko.xz: kernel/x.ko\n",
	"proc/sys/kernel/osrelease":         "6.1.0\n",
	"proc/net/route": "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n" +
		"eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\n" +
		"eth1\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\n",
	"proc/sys/net/ipv4/conf/eth0/forwarding": "1\n",
	"etc/resolv.conf":                        "search example.org\nnameserver 192.0.2.1\n",
}

// goodProbe looks at a host that lacks nothing.
func goodProbe(t *testing.T) probe {
	p := probe{
		root: t.TempDir(),
		host: vm.Host{QEMU: "/usr/bin/qemu-system-x86_64", QEMUImg: "/usr/bin/qemu-img", Busybox: "/bin/busybox",
			Kernel: "/boot/vmlinuz-6.1.0", KernelDirs: []string{"/boot"}, Privileged: true},
		output:  outputs{}.output,
		network: networkHas(netsetup.Facts{}),
	}
	for name, text := range goodFiles {
		p.write(t, name, text)
	}
	return p
}

// outputs are what programs print, by command line; others print a version.
type outputs map[string]string

func (o outputs) output(_ context.Context, program string, args ...string) (string, error) {
	line := program + " " + strings.Join(args, " ")
	if out, ok := o[line]; ok {
		return out, nil
	}
	if args[0] == "--version" && filepath.IsAbs(program) {
		return filepath.Base(program) + " version 9\nsecond line\n", nil
	}
	return "", errors.New("run " + program + ": not found")
}

func (p probe) write(t *testing.T, name, text string) {
	t.Helper()
	file := p.path(name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (p probe) remove(t *testing.T, name string) {
	t.Helper()
	if err := os.RemoveAll(p.path(name)); err != nil {
		t.Fatal(err)
	}
}

func TestDoctorGoodHost(t *testing.T) {
	d := diagnose(t.Context(), goodProbe(t))
	for _, f := range d.Checks {
		if f.Status != statusOK || f.Do != "" {
			t.Errorf("%+v", f)
		}
	}
	if !d.Ready {
		t.Error("not ready")
	}
}

// TestDoctorFinds takes one thing at a time from a good host.
func TestDoctorFinds(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*testing.T, *probe)
		check  string
		want   status
		found  string
		ready  bool
	}{
		{"no privilege", func(_ *testing.T, p *probe) { p.host.Privileged = false },
			"privilege", statusMissing, "CAP_NET_ADMIN", false},
		{"no kvm", func(t *testing.T, p *probe) { p.remove(t, "dev/kvm") },
			"kvm", statusWarning, "no such file", true},
		{"no tun", func(t *testing.T, p *probe) { p.remove(t, "dev/net/tun") },
			"tun", statusMissing, "no such file", false},
		{"no 8021q", func(t *testing.T, p *probe) { p.write(t, "lib/modules/6.1.0/modules.builtin", "") },
			"8021q", statusMissing, "not in this kernel", true},
		{"8021q loaded", func(t *testing.T, p *probe) { p.remove(t, "lib"); p.write(t, "proc/net/vlan/config", "") },
			"8021q", statusOK, "in the running kernel", true},
		{"no cls_bpf", func(t *testing.T, p *probe) { p.write(t, "lib/modules/6.1.0/modules.dep", "") },
			"cls_bpf", statusMissing, "not in this kernel", false},
		{"no lists of modules", func(t *testing.T, p *probe) { p.remove(t, "lib") },
			"cls_bpf", statusOK, "unknown", true},
		{"nftables", func(*testing.T, *probe) {}, "firewall", statusOK, "nftables", true},
		{"no nftables", func(_ *testing.T, p *probe) {
			p.network = networkHas(netsetup.Facts{Firewall: firewall.Facts{NoNFTables: "no NAT", Command: firewall.IPTablesLegacy}})
		}, "firewall", statusOK, "iptables-legacy; nftables can't carry networks here: no NAT", true},
		{"iptables wanted", func(_ *testing.T, p *probe) {
			p.host.Firewall = "iptables"
			p.network = networkHas(netsetup.Facts{Wish: "iptables", Firewall: firewall.Facts{Command: firewall.IPTables}})
		}, "firewall", statusOK, "iptables, as VMRUN_FIREWALL says", true},
		{"neither", func(_ *testing.T, p *probe) {
			p.network = networkHas(netsetup.Facts{Firewall: firewall.Facts{NoNFTables: "no NAT", NoCommand: "iptables is not installed"}})
		}, "firewall", statusMissing, "iptables is not installed; nftables can't carry a network here: no NAT", false},
		{"no QEMU", func(_ *testing.T, p *probe) { p.host.QEMU = "" },
			"qemu", statusMissing, "not installed", false},
		{"no qemu-img", func(_ *testing.T, p *probe) { p.host.QEMUImg = "" },
			"qemu-img", statusWarning, "not installed", true},
		{"no kernel", func(_ *testing.T, p *probe) { p.host.Kernel = "" },
			"kernel", statusMissing, "none in /boot", false},
		{"no busybox", func(_ *testing.T, p *probe) { p.host.Busybox = "" },
			"busybox", statusWarning, "no static busybox", true},
		{"forwarding off", func(t *testing.T, p *probe) { p.remove(t, "proc/sys/net/ipv4") },
			"forwarding", statusOK, "eth0: off", true},
		{"no default route", func(t *testing.T, p *probe) { p.remove(t, "proc/net/route") },
			"forwarding", statusWarning, "no default route", true},
		{"Docker", func(_ *testing.T, p *probe) {
			p.network = networkHas(netsetup.Facts{Firewall: firewall.Facts{Filters: []firewall.Filter{{Backend: firewall.IPTablesNFT, Docker: true, Blocks: true}}}})
		}, "filters", statusOK, "iptables-nft: Docker", true},
		{"ufw", func(_ *testing.T, p *probe) {
			p.network = networkHas(netsetup.Facts{Firewall: firewall.Facts{Filters: []firewall.Filter{{Backend: firewall.IPTablesLegacy, Blocks: true}}}})
		}, "filters", statusOK, "iptables-legacy: in use", true},
		{"firewalld", func(_ *testing.T, p *probe) {
			p.network = networkHas(netsetup.Facts{Firewall: firewall.Facts{Firewalld: true}})
		}, "filters", statusOK, "firewalld; it is asked", true},
		{"strangers", func(_ *testing.T, p *probe) {
			p.network = networkHas(netsetup.Facts{Firewall: firewall.Facts{Strangers: []string{"inet filter, chain forward"}}})
		}, "filters", statusWarning, "dropped by inet filter, chain forward", true},
		{"br_netfilter", func(t *testing.T, p *probe) { p.write(t, "proc/sys/net/bridge/bridge-nf-call-iptables", "1\n") },
			"br_netfilter", statusOK, "on:", true},
		{"no resolver", func(t *testing.T, p *probe) { p.write(t, "etc/resolv.conf", "# none\n") },
			"resolver", statusWarning, "no nameserver", true},
		{"a host that can't be read", func(_ *testing.T, p *probe) { p.network = networkFails(errors.New("netlink says no")) },
			"subnet", statusWarning, "netlink says no", true},
		{"rules that only root sees", func(_ *testing.T, p *probe) { p.host.Privileged = false },
			"filters", statusWarning, "only root", false},
		{"no subnet", func(_ *testing.T, p *probe) {
			links := []netsetup.Link{{Name: "vpn", Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/8")}}}
			p.network = networkHas(netsetup.Facts{Links: links})
		}, "subnet", statusMissing, "no /24", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := goodProbe(t)
			tt.change(t, &p)
			d := diagnose(t.Context(), p)
			f := d.check(tt.check)
			if f.Status != tt.want || !strings.Contains(f.Found, tt.found) {
				t.Errorf("%s: %s %q, want %s %q", tt.check, f.Status, f.Found, tt.want, tt.found)
			}
			for _, f := range d.Checks {
				if (f.Status == statusOK) != (f.Do == "") {
					t.Errorf("%s is %s, and what to do is %q", f.Name, f.Status, f.Do)
				}
			}
			if d.Ready != tt.ready {
				t.Errorf("ready: %v; lacking %v", d.Ready, d.lacking())
			}
		})
	}
}

func TestDoctorText(t *testing.T) {
	p := goodProbe(t)
	p.host.Kernel = ""
	var out bytes.Buffer
	err := doctor(t.Context(), &out, p, false)
	if code := exitCode(err); code != exitFailed {
		t.Errorf("exit code %d", code)
	}
	for _, want := range []string{"ok       kvm", "missing  kernel", "apt-get install linux-image", "No VM can run on a nat network here: see kernel."} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in:\n%s", want, &out)
		}
	}
}

func (d diagnosis) check(name string) finding {
	for _, f := range d.Checks {
		if f.Name == name {
			return f
		}
	}
	return finding{}
}

func networkHas(f netsetup.Facts) func() (netsetup.Facts, string, error) {
	return func() (netsetup.Facts, string, error) { return f, "test", nil }
}

func networkFails(err error) func() (netsetup.Facts, string, error) {
	return func() (netsetup.Facts, string, error) { return netsetup.Facts{}, "", err }
}
