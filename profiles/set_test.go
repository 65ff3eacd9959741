package profiles

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const settable = `
[boot]
kernel = "vmlinuz"
[[nics]]
network = "lan"
[networks.lan]
mode = "nat"
subnet = "10.70.0.0/24"
`

func TestLoadWith(t *testing.T) {
	file := filepath.Join(t.TempDir(), "web.toml")
	if err := os.WriteFile(file, []byte(settable), 0o600); err != nil {
		t.Fatal(err)
	}
	work, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	p, err := LoadWith(file, []string{
		"name=other", "machine.cpus=4", "machine.memory=1GiB", `boot.cmdline="quiet"`, "nics[0].ip=10.70.0.9",
		"nics[1].network=user", `nics[1].forward=["8080:80"]`, "networks.lan.dhcp=false", "disks[0].path=a.qcow2", "machine.args=[]",
	})
	if err != nil {
		t.Fatal(err)
	}
	got := []any{p.Name, p.Machine.CPUs, p.Machine.Memory, p.Boot.Cmdline, p.NICs[0].IP.String(), p.NICs[1].Network,
		p.NICs[1].Forward[0].GuestPort, p.Networks["lan"].DHCP, p.Disks[0].Path, p.Boot.Kernel, p.File}
	want := []any{"other", 4, GiB, "quiet", "10.70.0.9", "user", uint16(80), false, filepath.Join(work, "a.qcow2"),
		filepath.Join(filepath.Dir(file), "vmlinuz"), file}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("value %d is %v, want %v", i, got[i], want[i])
		}
	}
}

func TestLoadWithFaults(t *testing.T) {
	file := filepath.Join(t.TempDir(), "web.toml")
	if err := os.WriteFile(file, []byte(settable), 0o600); err != nil {
		t.Fatal(err)
	}
	for setting, want := range map[string]string{
		"machine.cpus":               "--set machine.cpus: want KEY=VALUE",
		"machine.cpus=many":          "--set machine.cpus: machine.cpus: ",
		"machine.cpu.model=x":        "--set machine.cpu.model: machine.cpu: ",
		"machine.memroy=1GiB":        `--set machine.memroy: machine: unknown key "memroy": did you mean "memory"?`,
		"nics[7].ip=10.70.0.9":       "--set nics[7].ip: there is no nics[7]: nics has 1 elements",
		"boot[0].kernel=x":           "--set boot[0].kernel: there is no boot[0]",
		"name.x.y=1":                 "--set name.x.y: name: ",
		"=1":                         "is no key",
		"a b=1":                      "is no key",
		"extends=base.toml":          "is named in the file",
		"name=1\nextends=\"x.toml\"": "--set name: name: ",
		"networks.lan.vlan=3":        "--set networks.lan.vlan: networks.lan.vlan: this network is in mode \"nat\"",
	} {
		_, err := LoadWith(file, []string{setting})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q gave %v, want %s", setting, err, want)
		}
	}
}
