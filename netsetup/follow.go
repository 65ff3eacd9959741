package netsetup

import (
	"context"
	"errors"
	"log/slog"
	"slices"

	"github.com/vishvananda/netlink"
)

// receiveBuffer is for bursts of the kernel's news, in bytes: a host that starts
// containers has hundreds at once.
const receiveBuffer = 1 << 20

// watchOrphans follows the host's links while ports wait for their members.
func (k *keeper) watchOrphans(ctx context.Context) {
	subscribe := func(news chan netlink.LinkUpdate) error {
		return netlink.LinkSubscribeWithOptions(news, ctx.Done(), netlink.LinkSubscribeOptions{
			ErrorCallback: k.missedNews, ReceiveBufferSize: receiveBuffer})
	}
	go follow(ctx, k.log, subscribe, k.dropOrphans)
}

// followRoutes keeps forwarding where the host's routes are: a laptop changes
// its network, a VPN comes up.
func (k *keeper) followRoutes(ctx context.Context) {
	subscribe := func(news chan netlink.RouteUpdate) error {
		return netlink.RouteSubscribeWithOptions(news, ctx.Done(), netlink.RouteSubscribeOptions{
			ErrorCallback: k.missedNews, ReceiveBufferSize: receiveBuffer})
	}
	go follow(ctx, k.log, subscribe, func() {
		if err := k.updateEgress(); err != nil {
			k.log.Warn("follow routes", "cause", err)
		}
	})
}

func (k *keeper) missedNews(err error) { k.log.Warn("missed news of the kernel", "cause", err) }

// follow looks at the host at once and whenever the kernel has news. A
// subscription that broke off (a burst was too much for its buffer) is renewed,
// and whatever was missed is seen by the look that follows.
func follow[T any](ctx context.Context, log *slog.Logger, subscribe func(chan T) error, look func()) {
	for ctx.Err() == nil {
		news := make(chan T, 64)
		if err := subscribe(news); err != nil {
			log.Error("follow the kernel's news", "cause", err)
			return
		}
		look()
		for range news {
			for len(news) > 0 { // changes come in bursts
				<-news
			}
			look()
		}
	}
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
	facts, err := k.lockedFacts()
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

// lockedFacts looks at the host while no other network changes its forwarding.
func (k *keeper) lockedFacts() (Facts, error) {
	host, err := k.w.claims.lock()
	if err != nil {
		return Facts{}, err
	}
	defer host.Close()
	return readFacts(k.w.kernel, k.w.claims)
}
