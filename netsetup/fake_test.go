package netsetup

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmrun/vmrun/netsetup/firewall"
	"github.com/vmrun/vmrun/netsetup/uplink"
)

// fake is a kernel in memory. It is strict: it errs on changing or removing
// what is not there, and on adding what is. It counts the changes asked of it
// and fails the one numbered failAt, or panics at it to stand for a SIGKILL.
type fake struct {
	links   map[string]*Link
	routes  []Route
	sysctls map[string]string
	rules   map[string]bool // chains of iptables, tables of nftables, and elements of their sets
	guards  map[string]guard
	pins    map[string]MAC
	guarded map[int]uint64 // frames, by index of the link
	refused firewall.Refused
	filter  firewall.Facts
	trusted map[string]bool // links, by firewalld
	virt    fakeLibvirt
	ip      map[string]*onLink
	policy  map[string][]uplink.Rule // policy rules that name a bridge, by its name
	silent  bool                     // no neighbour answers
	uptime  time.Duration

	mu      sync.Mutex    // undos run at the same time, and who looks meanwhile
	broken  []string      // methods that always fail
	asked   chan []string // gets the names of links to be deleted, before proceed lets them go; nil: nobody waits
	proceed chan struct{}
	changes int
	failAt  int
	next    int // link index
}

var errInjected = errors.New("injected fault")

func newFake() *fake {
	f := &fake{links: map[string]*Link{}, sysctls: map[string]string{}, rules: map[string]bool{}, trusted: map[string]bool{},
		guards: map[string]guard{}, pins: map[string]MAC{}, ip: map[string]*onLink{}, policy: map[string][]uplink.Rule{}}
	f.sysctls["net/ipv4/ip_forward"] = "0"
	f.virt = newFakeLibvirt(f)
	f.add(Link{Name: "lo", Kind: "device", Loopback: true, Up: true, MTU: 65536})
	f.add(Link{Name: "eth1", Kind: "veth", MAC: MAC{2, 0, 0, 0, 0, 1}, Up: true, MTU: 1500, Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.2/24")}})
	f.add(Link{Name: "eth2", Kind: "veth", Up: true, MTU: 1500})
	f.routes = []Route{
		{Dst: netip.MustParsePrefix("0.0.0.0/0"), Link: "eth1", Table: 254},
		{Dst: netip.MustParsePrefix("192.0.2.0/24"), Link: "eth1", Table: 254},
	}
	f.ip["eth1"] = &onLink{}
	f.ip["eth1"].State, f.ip["eth1"].rules = used()
	return f
}

func (f *fake) add(l Link) {
	f.next++
	l.Index = f.next
	f.links[l.Name] = &l
	for _, key := range []string{"net/ipv4/conf/%s/forwarding", "net/ipv6/conf/%s/disable_ipv6", "net/ipv4/conf/%s/arp_ignore", "net/ipv6/conf/%s/addr_gen_mode"} {
		f.sysctls[fmt.Sprintf(key, l.Name)] = "0"
	}
}

// change counts a change and tells whether it is the one to fail.
func (f *fake) change() error {
	f.changes++
	if f.changes == f.failAt {
		return errInjected
	}
	return nil
}

func (f *fake) breaks(method string) error {
	if slices.Contains(f.broken, method) {
		return errInjected
	}
	return nil
}

func (f *fake) find(name string) (*Link, error) {
	if l := f.links[name]; l != nil {
		return l, nil
	}
	return nil, fmt.Errorf("interface %s is %w", name, errGone)
}

func (f *fake) Links() ([]Link, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []Link
	for _, name := range slices.Sorted(maps.Keys(f.links)) {
		out = append(out, *f.links[name])
	}
	return out, nil
}

func (f *fake) Index(link string) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l, err := f.find(link)
	if err != nil {
		return 0, err
	}
	return l.Index, nil
}

func (f *fake) Routes([]Link) ([]Route, error) { return f.routes, nil }

func (f *fake) addLink(l Link) error {
	if err := f.change(); err != nil {
		return err
	}
	if f.links[l.Name] != nil {
		return fmt.Errorf("interface %s exists", l.Name)
	}
	f.add(l)
	return nil
}

func (f *fake) AddBridge(b addBridge) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.addLink(Link{Name: b.Name, Altname: b.Title, Kind: "bridge", MAC: b.MAC, MTU: b.MTU, Group: b.Group})
}

func (f *fake) AddVLAN(v addVLAN) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	uplink, err := f.find(v.Uplink)
	if err != nil {
		return err
	}
	return f.addLink(Link{Name: v.Name, Altname: v.Title, Kind: "vlan", MTU: v.MTU, Group: v.Group, Parent: uplink.Index, VLAN: v.VLAN})
}

func (f *fake) OpenTAP(t openTAP) ([]*os.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.addLink(Link{Name: t.Name, Altname: t.Title, Kind: "tuntap", MAC: t.MAC, MTU: t.MTU, Group: t.Group}); err != nil {
		return nil, err
	}
	null, err := os.Open(os.DevNull)
	return []*os.File{null}, err
}

func (f *fake) DelLinks(group uint32, names []string) error {
	if f.asked != nil {
		f.asked <- names
		<-f.proceed
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.change(); err != nil {
		return err
	}
	found := false
	for _, l := range f.links {
		if l.Group != group || !slices.Contains(names, l.Name) && !slices.Contains(names, l.Altname) {
			continue
		}
		found = true
		f.remove(l)
	}
	if !found {
		return errGone
	}
	return nil
}

// remove takes a link with all that goes with it.
func (f *fake) remove(l *Link) {
	delete(f.links, l.Name)
	delete(f.guards, l.Name)
	delete(f.pins, l.Name)
	delete(f.ip, l.Name)
	maps.DeleteFunc(f.sysctls, func(key, _ string) bool { return strings.Contains(key, "/"+l.Name+"/") })
	for _, other := range f.links {
		if other.Master == l.Index {
			other.Master = 0
		}
	}
}

func (f *fake) Enslave(link, bridge string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.change(); err != nil {
		return err
	}
	l, err := f.find(link)
	if err != nil {
		return err
	}
	b, err := f.find(bridge)
	if err != nil {
		return err
	}
	if l.Master != 0 {
		return fmt.Errorf("interface %s has a master", link)
	}
	l.Master = b.Index
	return nil
}

func (f *fake) SetUp(link string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.change(); err != nil {
		return err
	}
	l, err := f.find(link)
	if err == nil {
		l.Up = true
	}
	return err
}

func (f *fake) AddAddress(link string, address netip.Prefix) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.change(); err != nil {
		return err
	}
	l, err := f.find(link)
	if err == nil {
		l.Addrs = append(l.Addrs, address)
	}
	return err
}

func (f *fake) Guard(g guard) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.change(); err != nil {
		return err
	}
	_, err := f.find(g.Link)
	f.guards[g.Link] = g
	return err
}

func (f *fake) Guarded() (map[int]uint64, error) { return f.guarded, nil }

func (f *fake) Refused(string, []firewall.Backend) (firewall.Refused, error) { return f.refused, nil }

func (f *fake) PinMAC(link string, mac MAC) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.change(); err != nil {
		return err
	}
	l, err := f.find(link)
	if err == nil && l.Master == 0 {
		return fmt.Errorf("interface %s is in no bridge", link)
	}
	f.pins[link] = mac
	return err
}

func (f *fake) Sysctl(key string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sysctl(key)
}

func (f *fake) sysctl(key string) (string, error) {
	v, ok := f.sysctls[key]
	if !ok {
		return "", fmt.Errorf("sysctl %s is %w", key, errGone)
	}
	return v, nil
}

func (f *fake) SetSysctl(key, value string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := errors.Join(f.change(), f.breaks("SetSysctl")); err != nil {
		return err
	}
	if _, err := f.sysctl(key); err != nil {
		return err
	}
	if key == routerKey && f.sysctls[key] != value {
		f.route(value)
	}
	f.sysctls[key] = value
	return nil
}

func (f *fake) TUN() error { return nil }

// state is all that a test compares, as text.
func (f *fake) state() string {
	var b strings.Builder
	links, _ := f.Links()
	for _, l := range links {
		fmt.Fprintf(&b, "link %+v\n", l)
	}
	for _, key := range slices.Sorted(maps.Keys(f.sysctls)) {
		fmt.Fprintf(&b, "%s = %s\n", key, f.sysctls[key])
	}
	for _, key := range slices.Sorted(maps.Keys(f.rules)) {
		fmt.Fprintf(&b, "rules %s\n", key)
	}
	fmt.Fprintf(&b, "trusted %v\n", f.trusted)
	fmt.Fprintf(&b, "guards %v pins %v\n", f.guards, f.pins)
	fmt.Fprintf(&b, "libvirt %+v\n", f.virt.networks)
	b.WriteString(f.ipState())
	return b.String()
}
