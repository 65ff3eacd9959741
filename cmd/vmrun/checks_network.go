package main

import (
	"context"
	"errors"
	"strings"

	"github.com/vmrun/vmrun/netsetup"
)

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

func checkDocker(ctx context.Context, p probe) finding {
	rules, err := p.output(ctx, "iptables", "-w", "5", "-S")
	switch {
	case err != nil && !p.host.Privileged:
		return warning("unknown: only root can list the rules", "run vmrun doctor with sudo")
	case err != nil:
		return warning("unknown: "+err.Error(), "see iptables above")
	}
	policy := "ACCEPT"
	if hasLine(rules, "-P FORWARD DROP") {
		policy = "DROP"
	}
	switch docker := hasLine(rules, "-N DOCKER-USER"); {
	case docker:
		return good("running, policy of FORWARD is %s; guests are let through in DOCKER-USER", policy)
	case policy == "DROP":
		return good("not running; policy of FORWARD is DROP, guests are let through before it")
	}
	return good("not running; policy of FORWARD is ACCEPT")
}

func hasLine(text, line string) bool {
	for l := range strings.Lines(text) {
		if strings.TrimSpace(l) == line {
			return true
		}
	}
	return false
}

func checkBridgeNetfilter(_ context.Context, p probe) finding {
	if p.read("/proc/sys/net/bridge/bridge-nf-call-iptables") == "1" {
		return good("on: iptables sees bridged frames, those of vmrun's bridges are let through")
	}
	return good("off")
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
		return warning("unknown: "+err.Error(), "")
	}
	spec := netsetup.Spec{Name: "nat", Shared: true, Mode: netsetup.NAT}
	plan, err := netsetup.NewPlan(spec, nil, instance, facts)
	if conflict, taken := errors.AsType[*netsetup.ConflictError](err); taken && conflict.Key == "subnet" {
		return missing(conflict.Reason, "")
	}
	if err != nil {
		return warning("unknown: "+err.Error(), "")
	}
	return good("%s is free", plan.Subnet)
}
