package main

import (
	"context"
	"errors"
	"strings"

	"github.com/vmrun/vmrun/netsetup"
	"github.com/vmrun/vmrun/netsetup/firewall"
	"github.com/vmrun/vmrun/netsetup/libvirt"
)

// seeAbove is for what depends on another check.
const seeAbove = "see the checks above"

func checkForwarding(_ context.Context, p probe) finding {
	links := p.defaultLinks()
	if len(links) == 0 {
		return warning("no default route", "guests will reach only what this host has a route to")
	}
	var found []string
	for _, link := range links {
		state := "off, switched on while a nat network is up"
		if p.read("/proc/sys/net/ipv4/conf/"+link+"/forwarding") == "1" {
			state = "on"
		}
		found = append(found, link+": "+state)
	}
	return good("%s", strings.Join(found, "; "))
}

// checkFirewall tells what carries networks' rules.
func checkFirewall(_ context.Context, p probe) finding {
	facts, _, err := p.network()
	f := facts.Firewall
	backend, lack := f.Choose(firewall.Wish(p.host.Firewall))
	switch {
	case !p.host.Privileged:
		return warning("unknown: only root can find out", "run vmrun doctor with sudo")
	case err != nil:
		return warning("unknown: "+err.Error(), seeAbove)
	case lack != nil:
		return missing(lack.Error(), "use a kernel with nftables' or iptables' NAT; for the latter, apt-get install iptables")
	case backend == firewall.NFTables:
		return good("nftables")
	case f.NoNFTables != "":
		return good("%s; nftables can't carry networks here: %s", backend, f.NoNFTables)
	}
	return good("%s, as VMRUN_FIREWALL says", backend)
}

// checkFilters tells who else filters, and whether guests' packets pass there.
func checkFilters(_ context.Context, p probe) finding {
	facts, _, err := p.network()
	switch {
	case !p.host.Privileged:
		return warning("unknown: only root can list the rules", "run vmrun doctor with sudo")
	case err != nil:
		return warning("unknown: "+err.Error(), seeAbove)
	}
	if strangers := facts.Firewall.Strangers; len(strangers) > 0 {
		return warning("what they don't know is dropped by "+strings.Join(strangers, "; "), strangersHint)
	}
	var found []string
	for _, f := range facts.Firewall.Filters {
		switch {
		case f.Docker:
			found = append(found, string(f.Backend)+": Docker; guests are let through in DOCKER-USER")
		case f.Blocks:
			found = append(found, string(f.Backend)+": in use; guests are let through before its rules")
		}
	}
	if facts.Firewall.Firewalld {
		found = append(found, "firewalld; it is asked to trust the networks' bridges")
	}
	if len(found) == 0 {
		return good("nobody else filters")
	}
	return good("%s", strings.Join(found, "; "))
}

const strangersHint = "let the networks' bridges pass there, whose names begin with vmr: nothing that vmrun accepts outdoes it"

func checkBridgeNetfilter(_ context.Context, p probe) finding {
	if p.read("/proc/sys/net/bridge/bridge-nf-call-iptables") == "1" {
		return good("on: iptables sees bridged frames, those of vmrun's bridges are let through")
	}
	return good("off")
}

// checkLibvirt asks libvirt for its networks, whose ranges are taken.
func checkLibvirt(_ context.Context, p probe) finding {
	facts, _, err := p.network()
	if err == nil {
		err = facts.NoLibvirt
	}
	switch {
	case errors.Is(err, libvirt.ErrAbsent):
		return good("not running")
	case err != nil:
		return warning("unknown: "+err.Error(), "its networks' ranges may be taken; restart libvirtd if it hangs, or run vmrun doctor with sudo")
	case len(facts.Libvirt) == 0:
		return good("running, without networks")
	}
	var found []string
	for _, n := range facts.Libvirt {
		state := "not active"
		if n.Active {
			state = "active"
		}
		found = append(found, n.Name+": "+state)
	}
	return good("%s", strings.Join(found, "; "))
}

func checkResolver(_ context.Context, p probe) finding {
	var servers []string
	for line := range strings.Lines(p.read("/etc/resolv.conf")) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "nameserver" {
			servers = append(servers, f[1])
		}
	}
	if len(servers) == 0 {
		return warning("no nameserver in /etc/resolv.conf", "guests will resolve only the names of other guests")
	}
	return good("%s", strings.Join(servers, ", "))
}

func checkSubnet(_ context.Context, p probe) finding {
	facts, instance, err := p.network()
	switch {
	case err != nil && !p.host.Privileged:
		return warning("unknown: only root can see the whole host", "run vmrun doctor with sudo")
	case err != nil:
		return warning("unknown: "+err.Error(), seeAbove)
	}
	spec := netsetup.Spec{Name: "nat", Shared: true, Mode: netsetup.NAT}
	plan, err := netsetup.NewPlan(spec, nil, instance, facts)
	if conflict, taken := errors.AsType[*netsetup.ConflictError](err); taken && conflict.Key == "subnet" {
		return missing(conflict.Reason, `write a free one into the profile: subnet = "…"`)
	}
	if err != nil {
		return warning("unknown: "+err.Error(), seeAbove)
	}
	return good("%s is free", plan.Subnet)
}
