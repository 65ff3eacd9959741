package integration

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/hoststate"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
	"github.com/vmrun/vmrun/integration/internal/world"
)

// settleStrangers makes things of somebody else that look like vmrun's: each is
// named by vmrun's pattern or nearly so.
const settleStrangers = `
	for bridge in vmr vmr0 vmroute0 vmr-lan vmraaaaaaaaaa; do
		ip link add $bridge type bridge; ip link set $bridge addrgenmode none; ip link set $bridge up
	done
	ip addr add 10.98.0.1/24 dev vmraaaaaaaaaa
	ip link add vmvaaaaaaaaaa type veth peer vmv0
	ip tuntap add vmtaaaaaaaaaaaa mode tap; ip tuntap add vmtap0 mode tap
	ip link set vmtaaaaaaaaaaaa master vmraaaaaaaaaa
	bridge fdb add 02:00:00:00:00:09 dev vmtaaaaaaaaaaaa master static
	ip link property add dev vmr0 altname vmrun-lan-aaaaaaaaaa
	for table in filter nat; do
		iptables -t $table -N VMR-aaaaaaaaaa-FWD
		iptables -t $table -A VMR-aaaaaaaaaa-FWD -i vmraaaaaaaaaa -j ACCEPT
		iptables -t $table -N VMR-
	done
	iptables -I FORWARD -i vmraaaaaaaaaa -j VMR-aaaaaaaaaa-FWD
	iptables -A FORWARD -i vmr+ -j VMR-
	iptables -t nat -A POSTROUTING -s 10.98.0.0/24 -j VMR-aaaaaaaaaa-FWD
	ip rule add pref 77 from 10.70.0.0/24 lookup 77
	ip route add default via 192.0.2.1 table 77
	ip route add blackhole 10.97.0.0/24
`

// settleNFT is the same in tables of their own.
const settleNFT = `
	for table in vmrun vmrun_aaaaaaaaaa; do
		nft add table inet $table
		nft add chain inet $table forward '{ type filter hook forward priority 5; policy accept; }'
		nft add rule inet $table forward iifname '"vmr*"' ip saddr 10.98.0.0/24 accept
	done
`

// settleProcesses are daemons on a stranger's bridge, and what calls itself as
// vmrun's processes do. They end with the sandbox.
const settleProcesses = `
	dnsmasq --conf-file=/dev/null --no-hosts --no-resolv --interface=vmraaaaaaaaaa --except-interface=lo --bind-interfaces \
		--dhcp-range=10.98.0.2,10.98.0.99 --dhcp-leasefile=/run/strange.leases --pid-file=/run/strange.pid
	bash -c 'exec -a "vmrun keeper --runtime /run/first/run --network lan" sleep 3600' </dev/null >/dev/null 2>&1 &
	bash -c 'exec -a qemu-system-x86_64 sleep 3600' </dev/null >/dev/null 2>&1 &
`

func sh(t *testing.T, script string) {
	t.Helper()
	if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// Whatever vmrun does, in order and after kills, what is somebody else's stays
// as it is, also what looks like vmrun's own.
func TestStrangers(t *testing.T) {
	beside(t)
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			sandbox.Run(t, func(t *testing.T) {
				feature.Needs(t, "qemu", "tun", "dnsmasq", backend)
				h := newHostWith(t, backend)
				newOutside(t, h, "10.70.0.0/24")
				sh(t, settleStrangers+settleNFT+settleProcesses)
				settled(t, h, netlink.OperDown, "vmraaaaaaaaaa") // the others have no port that could tell
				profile := writeProfile(t, t.TempDir(), "a", haltedGuest(t)+natLAN)
				shareGroup(t, h, profile)
				h.cycle(t, profile, 100)
			})
		})
	}
}

// The same for sub-interfaces of the uplink, beside a tenant's network.
func TestStrangersVLAN(t *testing.T) {
	sandbox.Run8021Q(t, func(t *testing.T) {
		feature.Needs(t, "qemu", "tun", "iptables")
		h := newHost(t)
		addLink(t, h, "eth1", "192.0.2.2/24")
		sh(t, settleStrangers+`
			ip link del vmvaaaaaaaaaa
			ip link add link eth1 name eth1.20 type vlan id 20; ip link set eth1.20 addrgenmode none; ip link set eth1.20 up
			ip link add link eth1 name vmvaaaaaaaaaa type vlan id 30; ip link set vmvaaaaaaaaaa addrgenmode none; ip link set vmvaaaaaaaaaa up
			ip link set eth1.20 master vmr0; ip link set vmvaaaaaaaaaa master vmraaaaaaaaaa`)
		settled(t, h, netlink.OperUp, "vmr0", "vmraaaaaaaaaa", "eth1.20", "vmvaaaaaaaaaa")
		profile := writeProfile(t, t.TempDir(), "a", haltedGuest(t)+tenantNetwork("acme", 10, "10.72.0.11"))
		shareGroup(t, h, profile)
		h.cycle(t, profile, feature.Amount(3, 100))
	})
}

// settled waits until links are in a state.
func settled(t *testing.T, h *host, want netlink.LinkOperState, links ...string) {
	t.Helper()
	for _, link := range links {
		world.SettleAs(t, h.Namespace, link, want)
	}
}

// shareGroup puts a stranger's link into the link group that a profile's network
// will have.
func shareGroup(t *testing.T, h *host, profile string) {
	t.Helper()
	vm := h.run(t, profile, "--grace", "0s")
	vm.tells(t, joined)
	links, err := h.Links().LinkList()
	if err != nil {
		t.Fatal(err)
	}
	groups := map[int]bool{}
	for _, l := range links {
		if group := int(l.Attrs().Group); group != 0 {
			groups[group] = true
			stranger, err := h.Links().LinkByName("vmroute0")
			if err == nil {
				err = h.Links().LinkSetGroup(stranger, group)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(groups) != 1 {
		t.Fatalf("groups of the network's links: %v", groups)
	}
	terminate(t, vm)
}

// cycle runs a VM again and again, and ends it by order, with its keeper killed,
// and by a SIGKILL of everything. What there was before has to be there
// meanwhile and afterwards.
func (h *host) cycle(t *testing.T, profile string, times int) {
	t.Helper()
	before := h.state(t)
	for i := range times {
		vm := h.run(t, profile, "--grace", "0s")
		vm.tells(t, joined)
		h.untouched(t, before)
		switch i % 3 {
		case 1:
			keeper := h.keeperProcess(t)
			if err := unix.Kill(keeper.PID, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			awaitEnd(t, keeper)
			fallthrough
		case 2:
			terminate(t, vm)
		case 0:
			h.killStrangers(t, before)
			vm.exit(t)
		}
		h.collectGarbage(t)
		h.restored(t, before)
		if t.Failed() {
			t.Fatalf("in cycle %d", i)
		}
	}
}

// keeperProcess is the one keeper, by its program: others may call themselves so.
func (h *host) keeperProcess(t *testing.T) hoststate.Process {
	t.Helper()
	running, err := hoststate.Running()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range running {
		program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.PID))
		if err == nil && program == os.Getenv(binaryVariable) && strings.Contains(p.Command, keeperWord) {
			return p
		}
	}
	t.Fatalf("no keeper among %v", running)
	return hoststate.Process{}
}

// ofUplink is what a network in use changes of the interface that leads out:
// whether it forwards, and how many sub-interfaces listen there.
var ofUplink = regexp.MustCompile(`^- (settings: net/ipv4/conf/eth1/forwarding|links: eth1@\S+ .* promiscuity)`)

// untouched fails the test if something that was there before is not, or is
// another.
func (h *host) untouched(t *testing.T, before state) {
	t.Helper()
	for line := range strings.Lines(hoststate.Diff(before.text, h.state(t).text)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "- ") && !ofUplink.MatchString(line) {
			t.Errorf("while a VM runs: %s", line)
		}
	}
}

// dyingPatience is how long a run waits for the end of who was killed under its
// name. Without that it takes a fraction.
const dyingPatience = 5 * time.Second

// A process that has the number of a killed one is nobody that vmrun knows: not
// when it cleans up, and not when the next run finds state.json still there.
func TestReusedProcessID(t *testing.T) {
	beside(t)
	for _, variant := range []struct {
		name  string
		first [][]string // what is called before the next run
	}{
		{"gc first", [][]string{{"gc"}, {"gc", "--json"}}},
		{"run first", nil},
	} {
		t.Run(variant.name, func(t *testing.T) {
			sandbox.Run(t, func(t *testing.T) {
				feature.Needs(t, "qemu", "tun", "iptables", "nextpid")
				reusedProcessID(t, variant.first)
			})
		})
	}
}

func reusedProcessID(t *testing.T, first [][]string) {
	h := newHost(t)
	newOutside(t, h, "10.70.0.0/24")
	before := h.state(t)
	profile := writeProfile(t, t.TempDir(), "a", haltedGuest(t)+natLAN)
	vm := h.run(t, profile, "--grace", "0s")
	vm.tells(t, joined)
	dead, err := hoststate.Others(before.processes)
	if err != nil {
		t.Fatal(err)
	}
	h.killStrangers(t, before)
	vm.exit(t)
	h.gone(t, before)
	var heirs []*exec.Cmd
	for _, p := range dead {
		heirs = append(heirs, startAs(t, p.PID))
	}
	for _, args := range first {
		if code, out := h.vmrun(t, args...); code != 0 {
			t.Errorf("gc ends with %d: %s", code, out)
		}
	}
	began := time.Now()
	again := h.run(t, profile, "--grace", "0s")
	again.tells(t, joined)
	if took := time.Since(began); feature.Long() && took > dyingPatience {
		t.Errorf("the run joined its network after %v: it has waited for somebody else's end", took)
	}
	terminate(t, again)
	for _, heir := range heirs {
		// Signal 0 would reach a killed one, too, as long as nobody has waited for it.
		if pid, err := unix.Wait4(heir.Process.Pid, nil, unix.WNOHANG, nil); pid != 0 || err != nil {
			t.Errorf("process %d, which has a killed one's number, runs no more: wait4 returns %d, %v", heir.Process.Pid, pid, err)
		}
		heir.Process.Kill()
		heir.Wait() // it was killed
	}
	h.restored(t, before)
}

// startAs starts a process that has the given number.
func startAs(t *testing.T, pid int) *exec.Cmd {
	t.Helper()
	for range 100 { // whoever else starts one may take the number
		write(t, "/proc/sys/kernel/ns_last_pid", fmt.Sprint(pid-1))
		cmd := exec.Command("sleep", "3600")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if cmd.Process.Pid == pid {
			return cmd
		}
		cmd.Process.Kill()
		cmd.Wait() // it was killed
	}
	t.Fatalf("no process gets the number %d", pid)
	return nil
}
