package netsetup

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// receiveBuffer is for bursts of the kernel's news, in bytes: a host that starts
// containers has hundreds at once.
const receiveBuffer = 1 << 20

// watchOrphans follows the host's links while ports wait for their members.
func (k *keeper) watchOrphans(ctx context.Context) {
	subscribe := func(news chan netlink.LinkUpdate) error {
		return netlink.LinkSubscribeWithOptions(news, ctx.Done(), netlink.LinkSubscribeOptions{
			ErrorCallback: k.missedNews(ctx), ReceiveBufferSize: receiveBuffer})
	}
	go follow(ctx, k.log, subscribe, k.dropOrphans)
}

// followRoutes keeps forwarding where the host's routes are: a laptop changes
// its network, a VPN comes up.
func (k *keeper) followRoutes(ctx context.Context) {
	subscribe := func(news chan netlink.RouteUpdate) error {
		return netlink.RouteSubscribeWithOptions(news, ctx.Done(), netlink.RouteSubscribeOptions{
			ErrorCallback: k.missedNews(ctx), ReceiveBufferSize: receiveBuffer})
	}
	look := func() {
		if err := k.updateEgress(); err != nil {
			k.log.Warn("follow routes", "cause", err)
		}
	}
	go follow(ctx, k.log, subscribe, look)
	go follow(ctx, k.log, func(news chan struct{}) error { return subscribeForwarding(ctx, news, allLinks) }, look)
}

// allLinks stands for the whole host where a link's index is expected
// (NETCONFA_IFINDEX_ALL of linux/netconf.h).
const allLinks = -1

// subscribeForwarding tells of changes of the forwarding sysctls of some links,
// by their indexes, ip_forward being that of allLinks (rtnetlink's
// RTM_NEWNETCONF). Each new TAP makes such news, too: a look at everything for
// each would make a crowd's ports slower one by one. The channel is closed when
// ctx ends or the subscription breaks off.
func subscribeForwarding(ctx context.Context, news chan struct{}, links ...int) error {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_NETCONF)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, s.Close)
	go func() {
		defer close(news)
		defer stop()
		for {
			messages, _, err := s.Receive()
			if err != nil {
				s.Close()
				return
			}
			if !slices.ContainsFunc(messages, func(m syscall.NetlinkMessage) bool { return isForwardingOf(m, links) }) {
				continue
			}
			select {
			case news <- struct{}{}:
			default: // there is news already
			}
		}
	}()
	return nil
}

// isForwardingOf tells news of one of the links.
func isForwardingOf(m syscall.NetlinkMessage, links []int) bool {
	const headerSize, attrIndex = 4, 1 // struct netconfmsg, aligned; NETCONFA_IFINDEX
	if m.Header.Type != unix.RTM_NEWNETCONF || len(m.Data) < headerSize {
		return false
	}
	attrs, err := nl.ParseRouteAttr(m.Data[headerSize:])
	if err != nil {
		return true // better once too often
	}
	return slices.ContainsFunc(attrs, func(a syscall.NetlinkRouteAttr) bool {
		return a.Attr.Type == attrIndex && len(a.Value) == 4 && slices.Contains(links, int(int32(nl.NativeEndian().Uint32(a.Value))))
	})
}

// missedNews tells of errors in the kernel's news; those after ctx are its end.
func (k *keeper) missedNews(ctx context.Context) func(error) {
	return func(err error) {
		if ctx.Err() == nil {
			k.log.Warn("missed news of the kernel", "cause", err)
		}
	}
}

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
	errs := []error{k.openTransit()}
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

// forwardFor adds a way out to a network that is up already.
func (k *keeper) forwardFor(link string) error {
	facts, err := k.lockedFacts()
	if err != nil {
		return err
	}
	steps := forwardSteps(k.network, k.names, facts, link)
	if k.transitEntry(link) != 0 { // it stayed when the link was no way out for a time
		steps = steps[len(steps)-1:]
	}
	return apply(k.w, k.journal, steps)
}

// openTransit takes our transit chains away once somebody has made the host a
// router: what passes then is no longer our doing.
func (k *keeper) openTransit() error {
	router, err := k.w.kernel.Sysctl(routerKey)
	if err != nil || router != "1" {
		return err
	}
	var errs []error
	for link := range k.forwarded() {
		seq := k.transitEntry(link)
		if seq != 0 && k.w.claims.madeRouterSince(link, router) {
			errs = append(errs, k.journal.undoEntry(k.w, seq))
		}
	}
	return errors.Join(errs...)
}

// transitEntry is the number of the journal entry of a link's transit chain; 0
// where it has none.
func (k *keeper) transitEntry(link string) int {
	return k.journal.transitEntry(k.network, k.names, link)
}

func (j *journal) transitEntry(r Resolved, n names, link string) int {
	undo := addRules{transitRules(r, n, Facts{}, link)}.undo()
	for seq, u := range j.undos() {
		if undoesSame(u, undo) {
			return seq
		}
	}
	return 0
}

// undoesSame tells whether a journalled undo is for the same as another; where
// jumps to a chain come from may have changed since.
func undoesSame(journalled, other undoOp) bool {
	if a, ok := journalled.(delRules); ok {
		b, ok := other.(delRules)
		return ok && a.Backend == b.Backend && a.Chains[0].Name == b.Chains[0].Name
	}
	return journalled == other
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

// lockedFacts looks at the host while no other network changes its forwarding.
func (k *keeper) lockedFacts() (Facts, error) {
	host, err := k.w.claims.lock()
	if err != nil {
		return Facts{}, err
	}
	defer host.Close()
	return k.facts(k.network.Spec)
}
