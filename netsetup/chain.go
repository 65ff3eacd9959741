package netsetup

import (
	"crypto/sha256"
	"fmt"
	"strconv"
	"strings"
)

// chain is an iptables chain of ours, with the jumps that lead to it.
type chain struct {
	Table string   `json:"table"`
	Name  string   `json:"name"`
	Hooks []hook   `json:"hooks"`
	Rules []string `json:"rules,omitempty"` // matches and target, without -A
}

// hook is a jump from a chain that is not ours.
type hook struct {
	From  string `json:"from"`
	Match string `json:"match,omitempty"`
}

func (h hook) rule(to string) string {
	return strings.TrimSpace(h.Match + " -j " + to)
}

// lines is the chain as iptables' arguments, jumps last: they make it count.
func (c chain) lines() []string {
	var lines []string
	for _, r := range c.Rules {
		lines = append(lines, fmt.Sprintf("-t %s -A %s %s", c.Table, c.Name, r))
	}
	for _, h := range c.Hooks {
		lines = append(lines, fmt.Sprintf("-t %s -I %s 1 %s", c.Table, h.From, h.rule(c.Name)))
	}
	return lines
}

// bare is the chain without its rules: what an undo needs.
func bare(chains []chain) []chain {
	var out []chain
	for _, c := range chains {
		c.Rules = nil
		out = append(out, c)
	}
	return out
}

// firewallChains are a network's rules; their number does not depend on the
// number of VMs. transit lists links whose forwarding is switched on for this
// network alone: nothing but our own guests' traffic may use that.
func firewallChains(r Resolved, n names, f Facts, transit []string) []chain {
	chains := []chain{forwardChain(r, n, f), inputChain(r, n)}
	for _, link := range transit {
		chains = append(chains, transitChain(n, f, link))
	}
	if r.DNS && r.Address.IsValid() {
		chains = append(chains, dnsChain(r, n))
	}
	if r.Mode == NAT {
		chains = append(chains, masqueradeChain(r, n))
	}
	return chains
}

// forwardHook is where decisions on forwarding belong: before Docker's.
func forwardHook(f Facts) string {
	if f.Docker {
		return "DOCKER-USER"
	}
	return "FORWARD"
}

// forwardChain permits what the mode permits and rejects everything else that
// would be forwarded from or to the network. Bridged frames come here too where
// br_netfilter is on.
func forwardChain(r Resolved, n names, f Facts) chain {
	b := r.Link
	rules := []string{fmt.Sprintf("-i %s -o %s -j ACCEPT", b, b)}
	if r.Mode == NAT {
		rules = append(rules,
			fmt.Sprintf("-o %s -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", b),
			fmt.Sprintf("-o %s -j REJECT", b),
			// No way from one network of ours to another.
			fmt.Sprintf("-s %s -i %s ! -o %s+ -j ACCEPT", r.Subnet, b, bridgePrefix))
	} else {
		rules = append(rules, fmt.Sprintf("-o %s -j REJECT", b))
	}
	rules = append(rules, fmt.Sprintf("-i %s -j REJECT", b))
	from := forwardHook(f)
	return chain{Table: "filter", Name: n.chain + "-FWD", Rules: rules,
		Hooks: []hook{{from, "-i " + b}, {from, "-o " + b}}}
}

// inputChain is what guests reach on the host. DHCP is served from a packet
// socket, which sees frames before these rules do: dropping them here only
// keeps the host from answering "port unreachable".
func inputChain(r Resolved, n names) chain {
	rules := []string{"-p udp -m udp --dport 67 -j DROP"}
	if r.HostAccess == HostAll {
		rules = append(rules, "-j ACCEPT")
	} else {
		rules = append(rules, "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
		if r.HostAccess == HostServices && r.Address.IsValid() {
			rules = append(rules, fmt.Sprintf("-d %s/32 -p icmp -j ACCEPT", r.Address.Addr()))
		}
		if r.DNS && r.Address.IsValid() {
			for _, proto := range []string{"udp", "tcp"} {
				rules = append(rules, fmt.Sprintf("-d %s/32 -p %s -m %s --dport %d -j ACCEPT",
					r.Address.Addr(), proto, proto, r.DNSPort))
			}
		}
		rules = append(rules, "-j REJECT")
	}
	return chain{Table: "filter", Name: n.chain + "-IN", Rules: rules, Hooks: []hook{{"INPUT", "-i " + r.Link}}}
}

// transitChain keeps the host from becoming a router for the neighbours on a
// link that forwards only because of us; what others forward on purpose, replies
// and published ports, passes. It has a name of its own per link, as ways out
// come and go while the network is up.
func transitChain(n names, f Facts, link string) chain {
	sum := sha256.Sum256([]byte(link))
	return chain{Table: "filter", Name: n.chain + "-T" + hashText.EncodeToString(sum[:])[:8],
		Rules: []string{fmt.Sprintf("! -o %s+ -m conntrack --ctstate NEW -m conntrack ! --ctstate DNAT -j DROP", bridgePrefix)},
		Hooks: []hook{{forwardHook(f), "-i " + link}}}
}

// dnsChain leads the gateway's port 53 to ours: the port itself may be taken by
// a resolver of the host that listens on every address.
func dnsChain(r Resolved, n names) chain {
	c := chain{Table: "nat", Name: n.chain + "-PRE", Hooks: []hook{{"PREROUTING", "-i " + r.Link}}}
	for _, proto := range []string{"udp", "tcp"} {
		c.Rules = append(c.Rules, fmt.Sprintf("-d %s/32 -p %s -m %s --dport 53 -j REDIRECT --to-ports %s",
			r.Address.Addr(), proto, proto, strconv.Itoa(r.DNSPort)))
	}
	return c
}

// masqueradeChain gives outgoing traffic the address of the way out; broadcast
// and link-local multicast stay what they are.
func masqueradeChain(r Resolved, n names) chain {
	out := fmt.Sprintf("-s %s ! -o %s", r.Subnet, r.Link)
	rules := []string{"-d 224.0.0.0/24 -j RETURN", "-d 255.255.255.255/32 -j RETURN", "-j MASQUERADE"}
	return chain{Table: "nat", Name: n.chain + "-POST", Rules: rules, Hooks: []hook{{"POSTROUTING", out}}}
}

// restoreScript is the input of iptables-restore --noflush that adds chains:
// one process, and one transaction per table.
func restoreScript(chains []chain) string {
	return script(chains, func(b *strings.Builder, c chain) {
		fmt.Fprintf(b, ":%s - [0:0]\n", c.Name)
	}, func(b *strings.Builder, c chain) {
		for _, r := range c.Rules {
			fmt.Fprintf(b, "-A %s %s\n", c.Name, r)
		}
		for _, h := range c.Hooks {
			fmt.Fprintf(b, "-I %s 1 %s\n", h.From, h.rule(c.Name))
		}
	})
}

// deleteScript removes chains: jumps first, since a chain in use stays.
func deleteScript(chains []chain) string {
	return script(chains, func(*strings.Builder, chain) {}, func(b *strings.Builder, c chain) {
		for _, h := range c.Hooks {
			fmt.Fprintf(b, "-D %s %s\n", h.From, h.rule(c.Name))
		}
		fmt.Fprintf(b, "-F %s\n-X %s\n", c.Name, c.Name)
	})
}

func script(chains []chain, declare, body func(*strings.Builder, chain)) string {
	var b strings.Builder
	for _, table := range []string{"filter", "nat"} {
		var of []chain
		for _, c := range chains {
			if c.Table == table {
				of = append(of, c)
			}
		}
		if len(of) == 0 {
			continue
		}
		fmt.Fprintf(&b, "*%s\n", table)
		for _, c := range of {
			declare(&b, c)
		}
		for _, c := range of {
			body(&b, c)
		}
		b.WriteString("COMMIT\n")
	}
	return b.String()
}
