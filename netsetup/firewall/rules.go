// Package firewall carries the rules of vmrun's networks, by nftables or by
// iptables.
//
// What a network's rules are is said once, without either in mind: NewRules. Two
// backends render them, as messages of nftables or as iptables' arguments, and a
// Host adds and removes them. Facts say what works here, and who else filters.
package firewall

import (
	"fmt"
	"net/netip"
)

// Backend carries rules.
type Backend string

// A Backend is NFTables or the name of an iptables command.
const (
	NFTables       Backend = "nftables"
	IPTables       Backend = "iptables" // the distribution's choice of the other two
	IPTablesLegacy Backend = "iptables-legacy"
	IPTablesNFT    Backend = "iptables-nft"
)

// Rules are rules of one network that stand and fall together. They are plain
// data.
type Rules struct {
	Backend Backend
	ID      string   // of the network: all names derive from it
	Chains  []Chain  // those of the network
	Transit string   // or the link that they keep from transit; "": none
	Links   []string // nftables: those that the network keeps from transit already
	Docker  bool     // iptables: Docker's chain for others' rules comes first
}

// Chain is a list of rules, and who has to pass it.
type Chain struct {
	Name    string
	Hook    Hook
	Enter   []Match // a packet that one of these is for comes here
	Rules   []Rule
	Permits bool // what it does only opens: it may vanish with the keeper
}

// Hook is the point on a packet's way where a chain decides.
type Hook string

const (
	Forward     Hook = "forward"
	Input       Hook = "input"
	Prerouting  Hook = "prerouting"  // NAT of destinations
	Postrouting Hook = "postrouting" // NAT of sources
	Leaving     Hook = "leaving"     // after NAT
)

// Match says which packets are meant. Zero fields are for all.
type Match struct {
	In, Out  string // interfaces; nftables: In may be TransitLinks
	NotOut   string // any interface but this; + at the end stands for any rest
	Src, Dst netip.Prefix
	Hairpin  bool   // nftables: in and out by the same one of the transit links
	Proto    string // udp, tcp or icmp
	Port     int    // destination, of udp and tcp
	State    State
}

// State is what connection tracking knows of a packet.
type State string

const (
	Replies State = "replies" // of a connection that is there, or related to one
	Fresh   State = "fresh"   // the first of a connection, and nobody's DNAT led it here
)

// Rule is what happens to packets.
type Rule struct {
	Match
	Then   Verdict
	ToPort int     // of Redirect
	Counts Counter // "": nothing; iptables count everywhere
}

// Verdict is what happens to a packet.
type Verdict string

const (
	Accept     Verdict = "accept"
	Drop       Verdict = "drop"
	Reject     Verdict = "reject"
	Return     Verdict = "return" // the chain has nothing to say of it
	Redirect   Verdict = "redirect"
	Masquerade Verdict = "masquerade"
)

// Network is what the rules of a network are made from.
type Network struct {
	ID      string
	Bridge  string
	Others  string       // what begins so is a bridge of another network of ours
	Subnet  netip.Prefix // zero: addresses are not ours
	NAT     bool
	Address netip.Addr // the host's; zero: none
	All     bool       // guests reach the whole host
	Ping    bool       // guests may ping Address
	DNSPort int        // where our DNS listens on Address; 0: nowhere
	Uplink  bool       // the bridge is the host's own way out: what it routes and takes in is judged by its own rules
}

// NewRules are the rules of a network. Their number does not depend on the
// number of VMs.
func NewRules(n Network, b Backend) Rules {
	r := Rules{Backend: b, ID: n.ID, Chains: n.filters()}
	if n.Uplink {
		return r
	}
	// Without any NAT chain that lasts, the kernel would translate no packet of
	// the connections that are there while there is no keeper, and answer for
	// itself what is meant for a guest.
	if n.DNSPort != 0 || n.NAT && b == NFTables {
		r.Chains = append(r.Chains, n.dns())
	}
	if n.NAT {
		r.Chains = append(r.Chains, n.masquerade())
	}
	if n.NAT && b == NFTables {
		r.Chains = append(r.Chains, n.leaving(), n.transit(TransitLinks, Match{Hairpin: true}))
	}
	return r
}

// NewAccepts are those of a network's rules that somebody else's iptables have
// to hear of, beside nftables: an accept of one table does not outdo a drop of
// another.
func NewAccepts(n Network, f Filter) Rules {
	return Rules{Backend: f.Backend, ID: n.ID, Docker: f.Docker, Chains: n.filters()}
}

// filters are the chains that let pass and reject.
func (n Network) filters() []Chain {
	if n.Uplink {
		return []Chain{n.bridged()}
	}
	return []Chain{n.forward(), n.input()}
}

// bridged lets the bridge's own frames pass, which come here under br_netfilter.
func (n Network) bridged() Chain {
	return Chain{Name: "FWD", Hook: Forward, Enter: []Match{{In: n.Bridge, Out: n.Bridge}}, Rules: []Rule{{Then: Accept}}}
}

// NewTransit keeps a link from transit. Links come and go while the network is
// up: nftables has a set of them, iptables a chain for each.
func NewTransit(n Network, b Backend, docker bool, link string) Rules {
	r := Rules{Backend: b, ID: n.ID, Transit: link, Docker: docker}
	if b != NFTables {
		r.Chains = []Chain{n.transit(link, Match{Out: link})}
	}
	return r
}

// TransitLinks are all links that forward only because of us, as Match.In.
const TransitLinks = "@transit"

// transit keeps the host from becoming a router for the neighbours on a link
// that forwards only because of us; replies and published ports pass. Back are
// a bridge's own frames, which come here under br_netfilter.
func (n Network) transit(link string, back Match) Chain {
	return Chain{Name: "T", Hook: Forward, Enter: []Match{{In: link}}, Rules: []Rule{
		{Match: back, Then: Return},
		{Match: Match{NotOut: n.Others + "+", State: Fresh}, Then: Drop},
	}}
}

// forward permits what the mode permits and rejects everything else that would
// be forwarded from or to the network. Bridged frames come here too where
// br_netfilter is on.
func (n Network) forward() Chain {
	b := n.Bridge
	rules := []Rule{{Match: Match{In: b, Out: b}, Then: Accept}}
	if n.NAT {
		rules = append(rules,
			Rule{Match: Match{Out: b, State: Replies}, Then: Accept},
			Rule{Match: Match{Out: b}, Then: Reject, Counts: ToGuests},
			// No way from one network of ours to another.
			Rule{Match: Match{Src: n.Subnet, In: b, NotOut: n.Others + "+"}, Then: Accept})
	} else {
		rules = append(rules, Rule{Match: Match{Out: b}, Then: Reject, Counts: ToGuests})
	}
	rules = append(rules, Rule{Match: Match{In: b}, Then: Reject, Counts: FromGuests})
	return Chain{Name: "FWD", Hook: Forward, Enter: []Match{{In: b}, {Out: b}}, Rules: rules}
}

// input is what guests reach on the host. DHCP is served from a packet socket,
// which sees frames before these rules do: dropping them here only keeps the
// host from answering "port unreachable".
func (n Network) input() Chain {
	rules := []Rule{{Match: Match{Proto: "udp", Port: 67}, Then: Drop}}
	if n.All {
		rules = append(rules, Rule{Then: Accept})
	} else {
		rules = append(rules, Rule{Match: Match{State: Replies}, Then: Accept})
		if n.Ping {
			rules = append(rules, Rule{Match: Match{Dst: n.host(), Proto: "icmp"}, Then: Accept})
		}
		if n.DNSPort != 0 {
			for _, proto := range []string{"udp", "tcp"} {
				rules = append(rules, Rule{Match: Match{Dst: n.host(), Proto: proto, Port: n.DNSPort}, Then: Accept})
			}
		}
		rules = append(rules, Rule{Then: Reject, Counts: FromGuests})
	}
	return Chain{Name: "IN", Hook: Input, Enter: []Match{{In: n.Bridge}}, Rules: rules}
}

func (n Network) host() netip.Prefix { return netip.PrefixFrom(n.Address, n.Address.BitLen()) }

// dns leads the gateway's port 53 to ours: the port itself may be taken by a
// resolver of the host that listens on every address.
func (n Network) dns() Chain {
	c := Chain{Name: "PRE", Hook: Prerouting, Enter: []Match{{In: n.Bridge}}}
	if n.DNSPort == 0 {
		return c
	}
	for _, proto := range []string{"udp", "tcp"} {
		c.Rules = append(c.Rules, Rule{Match: Match{Dst: n.host(), Proto: proto, Port: 53}, Then: Redirect, ToPort: n.DNSPort})
	}
	return c
}

// local are destinations that no router passes on: they keep their source.
var local = []netip.Prefix{netip.MustParsePrefix("224.0.0.0/24"), netip.MustParsePrefix("255.255.255.255/32")}

// masquerade gives outgoing traffic the address of the way out; broadcast,
// link-local multicast and what the host says to itself stay what they are.
func (n Network) masquerade() Chain {
	c := Chain{Name: "POST", Hook: Postrouting, Enter: []Match{{Src: n.Subnet, NotOut: n.Bridge}}, Permits: true,
		Rules: []Rule{{Match: Match{Out: "lo"}, Then: Return}}}
	for _, dst := range local {
		c.Rules = append(c.Rules, Rule{Match: Match{Dst: dst}, Then: Return})
	}
	c.Rules = append(c.Rules, Rule{Then: Masquerade})
	return c
}

// leaving drops what would go out with the guests' own addresses: without the
// keeper, and so without masquerade, nothing new passes, and no connection is
// tracked that would go on without NAT once there is a keeper again. What has
// been translated before goes on.
func (n Network) leaving() Chain {
	c := Chain{Name: "OUT", Hook: Leaving, Enter: []Match{{Src: n.Subnet, NotOut: n.Bridge}},
		Rules: []Rule{{Match: Match{Out: "lo"}, Then: Return}}}
	for _, dst := range local {
		c.Rules = append(c.Rules, Rule{Match: Match{Dst: dst}, Then: Return})
	}
	c.Rules = append(c.Rules, Rule{Then: Drop, Counts: FromGuests})
	return c
}

// ByHand says to people what removes the rules of a network that nobody undoes.
func ByHand(b Backend, id string) string {
	if b == NFTables {
		return "nft delete table ip " + Table(id)
	}
	return fmt.Sprintf("deleting the chains %s%s-* of %s", chainPrefix, id, b)
}
