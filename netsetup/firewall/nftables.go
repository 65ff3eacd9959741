package firewall

import (
	"fmt"
	"net/netip"
	"strings"
)

// The tables of a network: one that stands until it is removed, with all that
// isolates, and beside it, where something only permits, one that its keeper
// owns and that the kernel removes with it (NFT_TABLE_F_OWNER, Linux 5.12).
const tablePrefix = "vmrun_"

// Table is the name of a network's lasting table.
func Table(id string) string { return tablePrefix + id }

func ownedTable(id string) string { return Table(id) + "_keeper" }

// base is where chains of a hook are called from.
type base struct {
	kind     string // of the chain: filter or nat
	hook     string
	priority int
}

// bases of the hooks. NAT comes just before that of others, as a jump at the top
// of iptables' chains would; what leaves is judged after it.
var bases = map[Hook]base{
	Forward:     {"filter", "forward", 0},
	Input:       {"filter", "input", 0},
	Prerouting:  {"nat", "prerouting", -101},
	Postrouting: {"nat", "postrouting", 99},
	Leaving:     {"filter", "postrouting", 150},
}

// tableOf is where a chain is.
func (r Rules) tableOf(c Chain) string {
	if c.Permits {
		return ownedTable(r.ID)
	}
	return Table(r.ID)
}

// set is one of the sets of a table with a transit chain. Their elements are
// added by the rules of each link.
type set struct {
	name string
	pair bool // of two interfaces, else of one
}

var (
	transitSet = set{name: strings.TrimPrefix(TransitLinks, "@")}
	hairpinSet = set{name: "hairpin", pair: true}
)

// sets are those that the lasting table has.
func (r Rules) sets() []set {
	for _, c := range r.Chains {
		if c.Enter[0].In == TransitLinks {
			return []set{transitSet, hairpinSet}
		}
	}
	return nil
}

// nftChain is a chain as nftables has it. Each of ours is one of these, and the
// base chains, which the kernel calls, jump to them.
type nftChain struct {
	table, name string
	base        *base
	rules       []nftRule
}

// nftRule is a rule, or a jump to a chain.
type nftRule struct {
	Rule
	jump string
}

// nftChains are the chains in the order in which they can be added: jumps come
// after what they lead to.
func (r Rules) nftChains() []nftChain {
	var all []nftChain
	bySource := map[string]int{}
	var called []nftChain
	for _, c := range r.Chains {
		t := r.tableOf(c)
		n := nftChain{table: t, name: strings.ToLower(c.Name) + "_net"}
		for _, rule := range c.Rules {
			n.rules = append(n.rules, nftRule{Rule: rule})
		}
		all = append(all, n)
		i, ok := bySource[t+string(c.Hook)]
		if !ok {
			b := bases[c.Hook]
			i = len(called)
			bySource[t+string(c.Hook)] = i
			called = append(called, nftChain{table: t, name: string(c.Hook), base: &b})
		}
		for _, m := range c.Enter {
			called[i].rules = append(called[i].rules, nftRule{Rule: Rule{Match: m}, jump: n.name})
		}
	}
	return append(all, called...)
}

// nftLines are the rules as nft would take them.
func (r Rules) nftLines() []string {
	if r.Transit != "" {
		return []string{
			fmt.Sprintf("add element ip %s %s { %q }", Table(r.ID), transitSet.name, r.Transit),
			fmt.Sprintf("add element ip %s %s { %q . %q }", Table(r.ID), hairpinSet.name, r.Transit, r.Transit),
		}
	}
	chains := r.nftChains()
	var lines []string
	for i, t := range r.tables() {
		owner := ""
		if i > 0 {
			owner = " { flags owner; }"
		}
		lines = append(lines, "add table ip "+t+owner)
	}
	for _, s := range r.sets() {
		lines = append(lines, fmt.Sprintf("add set ip %s %s { type %s; }", Table(r.ID), s.name, s.typeText()))
	}
	for _, c := range r.counters() {
		lines = append(lines, fmt.Sprintf("add counter ip %s %s", Table(r.ID), c))
	}
	for _, c := range chains {
		lines = append(lines, "add chain ip "+c.table+" "+c.name+c.base.text())
		for _, rule := range c.rules {
			lines = append(lines, strings.Join([]string{"add rule ip", c.table, c.name, rule.text()}, " "))
		}
	}
	return lines
}

// tables are the names of the tables, the lasting one first.
func (r Rules) tables() []string {
	all := []string{Table(r.ID)}
	for _, c := range r.Chains {
		if c.Permits {
			return append(all, ownedTable(r.ID))
		}
	}
	return all
}

func (s set) typeText() string {
	if s.pair {
		return "ifname . ifname"
	}
	return "ifname"
}

func (b *base) text() string {
	if b == nil {
		return ""
	}
	return fmt.Sprintf(" { type %s hook %s priority %d; policy accept; }", b.kind, b.hook, b.priority)
}

// text is a rule in nft's own words.
func (r nftRule) text() string {
	var w []string
	add := func(format string, args ...any) { w = append(w, fmt.Sprintf(format, args...)) }
	if r.Src.IsValid() {
		add("ip saddr %s", prefixName(r.Src))
	}
	if r.Dst.IsValid() {
		add("ip daddr %s", prefixName(r.Dst))
	}
	switch {
	case r.In == TransitLinks:
		add("iifname %s", r.In)
	case r.In != "":
		add("iifname %q", r.In)
	}
	if r.Out != "" {
		add("oifname %q", r.Out)
	}
	if r.NotOut != "" {
		add("oifname != %q", strings.Replace(r.NotOut, "+", "*", 1))
	}
	if r.Hairpin {
		add("iifname . oifname @%s", hairpinSet.name)
	}
	switch {
	case r.Port != 0:
		add("%s dport %d", r.Proto, r.Port)
	case r.Proto != "":
		add("meta l4proto %s", r.Proto)
	}
	switch r.State {
	case Replies:
		add("ct state established,related")
	case Fresh:
		add("ct state new ct status & dnat == 0")
	}
	if r.Counts != "" {
		add("counter name %q", r.Counts)
	}
	switch {
	case r.jump != "":
		add("jump %s", r.jump)
	case r.Then == Redirect:
		add("redirect to :%d", r.ToPort)
	default:
		add("%s", r.Then)
	}
	return strings.Join(w, " ")
}

// prefixName is a prefix as nft writes it: a single address without length.
func prefixName(p netip.Prefix) string {
	return strings.TrimSuffix(p.String(), "/32")
}
