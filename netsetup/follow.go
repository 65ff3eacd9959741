package netsetup

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
)

// watchOrphans follows the host's links while ports wait for their members.
func (k *keeper) watchOrphans(ctx context.Context) error {
	updates := make(chan netlink.LinkUpdate, 64)
	if err := netlink.LinkSubscribe(updates, ctx.Done()); err != nil {
		return fmt.Errorf("follow links: %w", err)
	}
	go func() {
		for range updates {
			k.dropOrphans()
		}
	}()
	k.dropOrphansSoon()
	return nil
}

// dropOrphansSoon catches what went between the last look and the subscription.
func (k *keeper) dropOrphansSoon() { go k.dropOrphans() }

// followRoutes keeps forwarding where the host's routes are: a laptop changes
// its network, a VPN comes up.
func (k *keeper) followRoutes(ctx context.Context) error {
	updates := make(chan netlink.RouteUpdate, 64)
	if err := netlink.RouteSubscribe(updates, ctx.Done()); err != nil {
		return fmt.Errorf("follow routes: %w", err)
	}
	go func() {
		for range updates {
			for len(updates) > 0 { // changes come in bursts
				<-updates
			}
			if err := k.updateEgress(); err != nil {
				k.log.Warn("follow routes", "cause", err)
			}
		}
	}()
	return nil
}

// updateEgress forwards for links that are new among the ways out and gives
// back those that are no longer.
func (k *keeper) updateEgress() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.phase != up {
		return nil
	}
	routes, err := readRoutes(k.w.kernel)
	if err != nil {
		return err
	}
	wanted, had := routes.egress(), k.forwarded()
	var errs []error
	for link, seq := range had {
		if !slices.Contains(wanted, link) {
			errs = append(errs, k.journal.undoEntry(k.w, seq))
		}
	}
	for _, link := range wanted {
		if _, ok := had[link]; !ok {
			errs = append(errs, k.forwardFor(link))
		}
	}
	return errors.Join(errs...)
}

// forwardFor adds a way out to a network that is up already. Its transit chain,
// which comes first, stays until the network ends: the link may come back.
func (k *keeper) forwardFor(link string) error {
	facts, err := readFacts(k.w.kernel, k.w.claims)
	if err != nil {
		return err
	}
	var steps []step
	c := transitChain(k.names, facts, link)
	if !facts.Forward[link] && !k.hasChain(c.Name) {
		chains := []chain{c}
		steps = append(steps, step{addRules{facts.Backend, chains}, delRules{facts.Backend, bare(chains)}})
	}
	return apply(k.w, k.journal, append(steps, step{forward{link}, unforward{link}}))
}

// forwarded maps the links that we forward for to their journal entries.
func (k *keeper) forwarded() map[string]int {
	links := map[string]int{}
	for seq, u := range k.journal.undos() {
		if f, ok := u.(unforward); ok {
			links[f.Link] = seq
		}
	}
	return links
}

func (k *keeper) hasChain(name string) bool {
	for _, u := range k.journal.undos() {
		if d, ok := u.(delRules); ok && slices.ContainsFunc(d.Chains, func(c chain) bool { return c.Name == name }) {
			return true
		}
	}
	return false
}
