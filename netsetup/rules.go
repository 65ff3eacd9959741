package netsetup

import (
	"context"
	"errors"
	"fmt"

	"github.com/vmrun/vmrun/netsetup/firewall"
)

// Firewall passes on what the firewall finds out.
func (h *host) Firewall(w firewall.Wish) (firewall.Facts, error) { return h.firewall.ReadFacts(w) }

func (h *host) Filters() ([]firewall.Filter, error) { return h.firewall.Filters() }

func (h *host) AddRules(r firewall.Rules) error { return h.firewall.Add(r) }

func (h *host) Refused(network string, backends []firewall.Backend) (firewall.Refused, error) {
	return h.firewall.Refused(network, backends)
}

func (h *host) LostRules(all []firewall.Rules) ([]firewall.Rules, error) { return h.firewall.Lost(all) }

func (h *host) ReplaceRules(r firewall.Rules) error { return h.firewall.Replace(r) }

func (h *host) DelChains(b firewall.Backend, chains []firewall.Jumped) error {
	return h.firewall.DelJumped(b, chains)
}

func (h *host) DelTables(network string) error { return gone(h.firewall.DelTables(network)) }

func (h *host) DelTransit(network, link string) error {
	return gone(h.firewall.DelTransit(network, link))
}

func (h *host) Trusted(link string) (bool, error) {
	trusted, err := h.firewall.Trusted(link)
	return trusted, gone(err)
}

func (h *host) Trust(link string) error { return gone(h.firewall.Trust(link)) }

func (h *host) Distrust(link string) error { return gone(h.firewall.Distrust(link)) }

func (h *host) AwaitFirewalld(ctx context.Context) { h.firewall.AwaitFirewalld(ctx) }

func gone(err error) error {
	if errors.Is(err, firewall.ErrAbsent) {
		return fmt.Errorf("%w (%w)", errGone, err)
	}
	return err
}

// rulesOf is a resolved network as the firewall sees it.
func rulesOf(r Resolved, n names) firewall.Network {
	return firewall.Network{
		ID: n.id, Bridge: r.Link, Others: bridgePrefix, Subnet: r.Subnet, NAT: r.Mode == NAT, Address: r.Address.Addr(),
		All: r.HostAccess == HostAll, Ping: r.HostAccess == HostServices && r.Address.IsValid(), DNSPort: r.DNSPort, Uplink: r.Takeover,
	}
}

// chooseBackend decides what carries a network's rules. Where the profile leaves
// it open, it is what the first member's environment asks for.
func chooseBackend(spec Spec, f Facts) (firewall.Backend, error) {
	wish, err := spec.wish(f)
	if err != nil {
		return "", err
	}
	b, err := f.Firewall.Choose(wish)
	if lack, ok := errors.AsType[*firewall.LackError](err); ok {
		return "", &MissingError{Feature: string(lack.Backend), Reason: lack.Reason}
	}
	return b, err
}

func (s Spec) wish(f Facts) (firewall.Wish, error) {
	wish, err := firewall.ParseWish(s.Firewall)
	if err != nil || wish != firewall.Auto {
		return wish, err
	}
	return firewall.ParseWish(string(f.Wish))
}

// rulesStep adds rules.
func rulesStep(r firewall.Rules) step { return step{addRules{r}, addRules{r}.undo()} }

// rulesSteps are a network's rules and, where others' iptables would stop what
// they let pass, the same for those.
func rulesSteps(r Resolved, n names, f Facts) []step {
	net := rulesOf(r, n)
	rules := firewall.NewRules(net, r.Backend)
	rules.Docker = f.Firewall.Docker
	steps := []step{rulesStep(rules)}
	wish, _ := r.wish(f) // it has been parsed before
	for _, filter := range f.Firewall.Blocking(wish, r.Backend) {
		steps = append(steps, rulesStep(firewall.NewAccepts(net, filter)))
	}
	if f.Firewall.Firewalld && !r.Takeover { // a zone's rules for the host are for the whole LAN
		steps = append(steps, step{trust{r.Link}, distrust{r.Link}})
	}
	return steps
}

// ruleWarnings say whose rules may stop what a network lets pass.
func ruleWarnings(spec Spec, b firewall.Backend, f Facts) []string {
	var all []string
	for _, s := range f.Firewall.Strangers {
		all = append(all, s+" drops what it does not know: let the network's bridge pass there")
	}
	if wish, _ := spec.wish(f); wish == firewall.WishNFTables {
		for _, filter := range f.Firewall.Blocking(firewall.Auto, b) {
			all = append(all, fmt.Sprintf(`%s filters, too, and firewall = "nftables" leaves it as it is: "auto" lets the network pass there`, filter.Backend))
		}
	}
	return all
}

// transitRules keep a link from transit.
func transitRules(r Resolved, n names, f Facts, link string) firewall.Rules {
	return firewall.NewTransit(rulesOf(r, n), r.Backend, f.Firewall.Docker, link)
}
