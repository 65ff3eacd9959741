package netsetup

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"path/filepath"

	"github.com/vmrun/vmrun/netsetup/firewall"
)

// Step is one line of a plan as people read it.
type Step struct {
	Do   string `json:"do"`
	Undo string `json:"undo,omitempty"` // "": goes with an earlier step's undo
}

// Plan is what Attach will do for one network and the ports that join it.
type Plan struct {
	Network string     `json:"network"`
	Bridge  string     `json:"bridge"`
	Subnet  string     `json:"subnet,omitempty"`
	Up      bool       `json:"up,omitempty"` // it is up by now: ports join it as it is
	Steps   []Step     `json:"steps"`        // done once, by the first member; none where it is up
	Ports   []PortPlan `json:"ports"`

	Warnings []string `json:"warnings,omitempty"` // for people: who may stop what the network lets pass
}

// PortPlan is the part of a plan that each port brings.
type PortPlan struct {
	VM    string `json:"vm"`
	NIC   int    `json:"nic"`
	Link  string `json:"link"`
	MAC   MAC    `json:"mac"`
	Steps []Step `json:"steps"`
}

// NewPlan says what Attach would do on a host with these facts: the same input
// gives the same plan. A *ConflictError says that the host leaves no room.
func NewPlan(spec Spec, ports []PortSpec, instance string, facts Facts) (Plan, error) {
	n := newNames(instance, spec)
	r, steps, err := planNetwork(spec, n, facts)
	if err != nil {
		return Plan{}, fmt.Errorf("plan network %s: %w", spec.Name, err)
	}
	p := newPlan(r, n, ports, facts)
	p.Steps = texts(steps)
	return p, nil
}

// NewJoinPlan says what Attach would do for ports on a network that is up, and is
// empty where it is not: NewPlan knows of none but the first member. A *ConflictError
// says that the network runs with another definition, an *ElsewhereError that it
// does in another network namespace, a *MissingError that its bridge is gone. Nothing
// is changed.
func NewJoinPlan(ctx context.Context, h Host, spec Spec, ports []PortSpec, facts Facts) (Plan, error) {
	r, err := runningAs(ctx, filepath.Join(netsFolder(h.Runtime), spec.folder()), facts)
	if errors.As(err, new(*NotFoundError)) || errors.Is(err, fs.ErrNotExist) { // the latter: it has just ended
		return Plan{}, nil
	}
	if err == nil {
		err = r.Spec.unlike(spec)
	}
	id := ""
	if err == nil {
		id, err = instance(h.Runtime)
	}
	if err != nil {
		return Plan{}, fmt.Errorf("plan network %s: %w", spec.Name, err)
	}
	p := newPlan(r, newNames(id, spec), ports, facts)
	p.Up = true
	return p, nil
}

// runningAs is what the network in a folder was brought up as; a *NotFoundError
// where it has no keeper.
func runningAs(ctx context.Context, dir string, facts Facts) (Resolved, error) {
	report, err := inspect(ctx, dir, true)
	if err != nil {
		return Resolved{}, err
	}
	switch report.State {
	case KeeperGone:
		return Resolved{}, notInUse(dir)
	case Broken:
		return Resolved{}, bridgeGone(report.Bridge)
	}
	saved, err := loadSpec(filepath.Join(dir, specName))
	if err != nil {
		return Resolved{}, err
	}
	j, err := readJournal(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		return Resolved{}, err
	}
	if where := j.elsewhere(); where != nil {
		way, _ := where.way()
		return Resolved{}, &ElsewhereError{Namespace: where.Net, Way: way}
	}
	if _, ok := facts.link(saved.Network.Link); !ok && report.State == GoingDown { // which hides that it is broken
		return Resolved{}, bridgeGone(saved.Network.Link)
	}
	return saved.Network, nil
}

func newPlan(r Resolved, n names, ports []PortSpec, facts Facts) Plan {
	p := Plan{Network: r.Name, Bridge: r.Link, Steps: []Step{}}
	if r.Subnet.IsValid() {
		p.Subnet = r.Subnet.String()
	}
	for _, port := range ports {
		p.Ports = append(p.Ports, PortPlan{VM: port.VM, NIC: port.NIC, MAC: port.MAC,
			Link: n.tap(port), Steps: texts(planPort(r, n, port))})
	}
	if r.Backend != "" {
		p.Warnings = ruleWarnings(r.Spec, r.Backend, facts)
	}
	return p
}

func texts(steps []step) []Step {
	var out []Step
	for _, s := range steps {
		t := Step{Do: s.do.String()}
		if s.undo != nil {
			t.Undo = s.undo.String()
		}
		out = append(out, t)
	}
	return out
}

// planNetwork resolves a network and lists what brings it up, in the order of
// the design: links, their sysctls, rules, address, forwarding.
func planNetwork(spec Spec, n names, f Facts) (Resolved, []step, error) {
	r, err := resolve(spec, n, f)
	if err != nil {
		return r, nil, err
	}
	switch {
	case spec.Bridge != "":
		return r, nil, nil // the bridge is the host's: nothing to do
	case spec.Libvirt != "":
		return r, libvirtSteps(r, n, f), nil
	}
	if r.DNS && r.Address.IsValid() {
		r.DNSPort = preferredDNSPort(n.id)
	}
	if r.Backend, err = chooseBackend(spec, f); err != nil {
		return r, nil, err
	}
	for _, link := range []string{n.bridge, n.vlan} {
		if l, ok := f.link(link); ok {
			return r, nil, conflict("name", "interface %s exists already; vmrun gc removes what a killed run left, ip link del %s and %s what has no journal any more",
				l.describe(), link, firewall.ByHand(r.Backend, n.id))
		}
	}
	return r, networkSteps(r, n, f), nil
}

func networkSteps(r Resolved, n names, f Facts) []step {
	if r.Takeover {
		return takeoverSteps(r, n, f)
	}
	steps := []step{{
		addBridge{Name: n.bridge, Title: n.title, MAC: n.bridgeMAC(), MTU: r.MTU, Group: n.group},
		delLinks{n.group, []string{n.bridge}, []string{n.title}},
	}}
	for _, kv := range bridgeSysctls(r, n.bridge) {
		steps = append(steps, step{do: kv})
	}
	steps = append(steps, uplinkSteps(r, n)...)
	steps = append(steps, rulesSteps(r, n, f)...)
	if r.Address.IsValid() {
		steps = append(steps, step{do: addAddress{n.bridge, r.Address}})
	}
	steps = append(steps, step{do: setUp{n.bridge}})
	if r.Mode == NAT {
		for _, link := range f.egress() {
			steps = append(steps, forwardSteps(r, n, f, link)...)
		}
	}
	return append(steps, serviceSteps(r)...)
}

// forwardSteps open one way out: first, where the link does not forward without
// us, what keeps the host from routing for its neighbours.
func forwardSteps(r Resolved, n names, f Facts, link string) []step {
	var steps []step
	if !f.Forward[link] {
		steps = append(steps, rulesStep(transitRules(r, n, f, link)))
	}
	return append(steps, step{forward{link}, unforward{link}})
}

// bridgeSysctls keep a bridge to itself: no IPv6 (it would pass by the IPv4
// rules), no answers for the host's other addresses, forwarding only for NAT.
func bridgeSysctls(r Resolved, link string) []setSysctl {
	forwarding := "0"
	if r.Mode == NAT {
		forwarding = "1"
	}
	return []setSysctl{
		{"net/ipv6/conf/" + link + "/disable_ipv6", "1"},
		{"net/ipv4/conf/" + link + "/forwarding", forwarding},
		{"net/ipv4/conf/" + link + "/arp_ignore", "1"},
	}
}

// uplinkSteps connect the bridge with the wire.
func uplinkSteps(r Resolved, n names) []step {
	switch r.Mode {
	case VLAN:
		title := n.title + "-uplink"
		steps := []step{{
			addVLAN{Name: n.vlan, Title: title, Uplink: r.Uplink, VLAN: r.VLAN, MTU: r.MTU, Group: n.group},
			delLinks{n.group, []string{n.vlan}, []string{title}},
		}}
		for _, kv := range bridgeSysctls(r, n.vlan) {
			steps = append(steps, step{do: kv})
		}
		return append(steps, step{do: enslave{n.vlan, n.bridge}}, step{do: setUp{n.vlan}})
	case Bridge:
		return []step{{do: enslave{r.Uplink, n.bridge}}}
	}
	return nil
}

func serviceSteps(r Resolved) []step {
	var steps []step
	if r.DHCP {
		steps = append(steps, step{do: note{fmt.Sprintf("serve DHCP on %s: %s-%s", r.Link, r.PoolFirst, r.PoolLast)}})
	}
	if r.DNSPort != 0 {
		at := netip.AddrPortFrom(r.Address.Addr(), uint16(r.DNSPort))
		steps = append(steps, step{do: note{fmt.Sprintf("serve DNS on %s", at)}})
	}
	return steps
}

// planPort lists what gives a member its port. The guards come before the port
// can carry a frame.
func planPort(r Resolved, n names, p PortSpec) []step {
	tap := n.tap(p)
	steps := []step{{
		openTAP{Name: tap, Title: n.tapTitle(p), MAC: tapMAC(p.MAC), MTU: r.MTU, Queues: max(p.Queues, 1), Group: n.group},
		delLinks{Group: n.group, Names: []string{tap}},
	}, {
		do: setSysctl{"net/ipv6/conf/" + tap + "/disable_ipv6", "1"},
	}}
	if !p.Trunk || !p.Spoof {
		steps = append(steps, step{do: guard{Link: tap, MAC: p.MAC, Trunk: p.Trunk, Spoof: p.Spoof}})
	}
	steps = append(steps, step{do: enslave{tap, r.Link}})
	if !p.Spoof {
		steps = append(steps, step{do: pinMAC{tap, p.MAC}})
	}
	return append(steps, step{do: setUp{tap}})
}

// preferredDNSPort is where a network's DNS listens unless the port is taken:
// below Linux's default range of ephemeral ports (32768 up).
func preferredDNSPort(id string) int {
	sum := sha256.Sum256([]byte("dns\x00" + id))
	return 20000 + int(binary.BigEndian.Uint16(sum[:]))%10000
}

// withDNSPort replaces the preferred port of DNS in a plan.
func withDNSPort(r Resolved, steps []step, n names, f Facts, port int) (Resolved, []step) {
	if port == 0 || port == r.DNSPort {
		return r, steps
	}
	r.DNSPort = port
	return r, networkSteps(r, n, f)
}
