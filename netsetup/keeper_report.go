package netsetup

import (
	"cmp"
	"net"
	"os"
	"slices"
	"time"

	"github.com/vmrun/vmrun/netsetup/firewall"
)

// reportPart is how many members, or leases, go into one message: a line of
// either is a few hundred bytes.
const reportPart = 64

// sendReport answers who asks about the network. The report goes in parts, and
// nobody waits for its reader.
func (k *keeper) sendReport(conn *net.UnixConn, who peer, r request) reply {
	parts, refused := k.reportTo(who, r)
	conn.SetWriteDeadline(time.Now().Add(answerTimeout))
	for i, part := range parts {
		answer := reply{Protocol: protocolVersion, Report: &part, More: i < len(parts)-1, Refused: refused}
		if refused != nil {
			answer.Report = nil
		}
		if err := send(conn, answer, nil); err != nil {
			break // who asked has gone, or does not read
		}
	}
	return reply{}
}

func (k *keeper) reportTo(who peer, r request) ([]Report, *refusal) {
	report, backends, why := k.reportNow(who, r)
	if why != "" {
		return make([]Report, 1), &refusal{Text: why}
	}
	if len(backends) > 0 && !r.Brief { // while others are served
		refused, err := k.w.kernel.Refused(k.names.id, backends)
		if err != nil {
			k.log.Warn("count refused packets", "cause", err)
		} else {
			report.Refused = &refused
		}
	}
	return split(report), nil
}

// reportNow tells what the keeper knows, and where the network's rules are; or
// why who asks is told nothing.
func (k *keeper) reportNow(who peer, r request) (Report, []firewall.Backend, string) {
	k.enter()
	defer k.exit()
	if why := k.refuses(who, r); why != "" {
		return Report{}, nil, why
	}
	if k.phase != up {
		return Report{}, nil, notUp
	}
	return k.report(), k.backends(), ""
}

// backends are all that carry rules of the network.
func (k *keeper) backends() []firewall.Backend {
	var all []firewall.Backend
	if k.network.Backend == firewall.NFTables {
		all = append(all, firewall.NFTables)
	}
	for _, d := range k.journalledChains() {
		if !slices.Contains(all, d.Backend) {
			all = append(all, d.Backend)
		}
	}
	return all
}

// notUp is what a keeper says that has no network, not yet or not any more.
const notUp = "the network is not up"

// split cuts a report into messages.
func split(r Report) []Report {
	members, leases := slices.Collect(slices.Chunk(r.Members, reportPart)), slices.Collect(slices.Chunk(r.Leases, reportPart))
	parts := make([]Report, max(len(members), len(leases), 1))
	r.Members, r.Leases = nil, nil
	parts[0] = r
	for i, m := range members {
		parts[i].Members = m
	}
	for i, l := range leases {
		parts[i].Leases = l
	}
	return parts
}

// join puts the parts of a report together.
func (r *Report) join(part Report) {
	if r.Name == "" {
		members, leases := r.Members, r.Leases
		*r = part
		r.Members, r.Leases = members, leases
	}
	r.Members = append(r.Members, part.Members...)
	r.Leases = append(r.Leases, part.Leases...)
}

func (k *keeper) report() Report {
	r := describeNetwork(k.network)
	r.State, r.Since, r.KeeperID, r.Group = Up, k.since, os.Getpid(), k.opened()
	if k.checkBridge() != nil {
		r.State = Broken
	}
	if h := k.held; h != nil {
		r.Holders = []Holder{{PID: int(h.peer.pid), UID: h.peer.uid, Since: h.since}}
		if h.draining {
			r.State = GoingDown
		}
	}
	links, err := k.w.kernel.Links()
	if err != nil {
		k.log.Warn("count traffic", "cause", err)
	}
	guarded, err := k.w.kernel.Guarded()
	if err != nil {
		k.log.Warn("count guarded frames", "cause", err)
	}
	for _, h := range k.ports {
		m := h.member()
		if h.conn != nil {
			m.PID = int(h.pid)
		}
		if l, ok := (Facts{Links: links}).link(h.Link); ok {
			m.Sent, m.Received, m.Guarded, m.Counted = l.In, l.Out, guarded[l.Index], true
		}
		m.DHCP, m.Leased = k.services.asked(h.Spec.MAC)
		r.Members = append(r.Members, m)
	}
	r.sort()
	if k.services.leases != nil {
		r.Leases = k.services.leases.List()
	}
	return r
}

func (r *Report) sort() {
	slices.SortFunc(r.Members, func(a, b Member) int { return cmp.Or(cmp.Compare(a.VM, b.VM), cmp.Compare(a.NIC, b.NIC)) })
}

// describeNetwork is what the definition says of a network, as it was resolved.
func describeNetwork(n Resolved) Report {
	return Report{
		Summary: Summary{ID: n.Spec.folder(), Name: n.Name, Dir: n.Dir, Mode: n.Mode, Bridge: n.Link, Subnet: n.Subnet.Masked()},
		Uplink:  n.Uplink, VLAN: n.VLAN, Tenant: n.Tenant, Address: n.Address, Gateway: n.Gateway,
		PoolFirst: n.PoolFirst, PoolLast: n.PoolLast, DHCP: n.DHCP, DNS: n.DNSPort != 0, MTU: n.MTU, HostAccess: n.HostAccess,
		Firewall: string(n.Backend),
		Holders:  []Holder{}, Members: []Member{}, Leases: []Lease{},
	}
}

func (p portRecord) member() Member {
	return Member{VM: p.Spec.VM, NIC: p.Spec.NIC, MAC: p.Spec.MAC, IP: p.IP, Link: p.Link, UID: p.UID, Since: p.Since}
}
