package netsetup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// mendPause is the least time between two repairs: should somebody undo each of
// them, neither side keeps the host busy.
const mendPause = 50 * time.Millisecond

// keepLinks puts back what somebody else takes away from the network's links
// while it is up. A systemd-networkd whose configuration fits every name takes
// ports out of bridges, addresses away and IPv6 into use each time it starts, and
// whoever writes ip_forward resets the bridge's forwarding.
func (k *keeper) keepLinks(ctx context.Context) {
	missed := k.missedNews(ctx)
	links := func(news chan netlink.LinkUpdate) error {
		return netlink.LinkSubscribeWithOptions(news, ctx.Done(), netlink.LinkSubscribeOptions{
			ErrorCallback: missed, ReceiveBufferSize: receiveBuffer})
	}
	addresses := func(news chan netlink.AddrUpdate) error {
		return netlink.AddrSubscribeWithOptions(news, ctx.Done(), netlink.AddrSubscribeOptions{
			ErrorCallback: missed, ReceiveBufferSize: receiveBuffer})
	}
	look := func() { k.mendAndTell(ctx) }
	go follow(ctx, k.log, chosen(links, k.network.suspicious(k.names, k.bridge)), look)
	go follow(ctx, k.log, chosen(addresses, suspiciousAddress), look)
	bridge := k.bridge
	if bridge == 0 {
		return // whose forwarding is nobody's, or the host's own business
	}
	go follow(ctx, k.log, func(news chan struct{}) error { return subscribeForwarding(ctx, news, allLinks, bridge) }, look)
}

// chosen is a subscription to the wanted ones of all news.
func chosen[T any](subscribe func(chan T) error, wanted func(T) bool) func(chan T) error {
	return func(news chan T) error {
		all := make(chan T, 64)
		if err := subscribe(all); err != nil {
			return err
		}
		go func() {
			defer close(news)
			for n := range all {
				if wanted(n) {
					news <- n
				}
			}
		}()
		return nil
	}
}

// suspicious tells news of the network's own links that are not in order: all
// keepers of a host hear of all links. One that is new is none before it has
// been in order: its port is just being made, and a look at all links for each
// would make a crowd's ports slower one by one. One that is gone is nobody's to
// mend; of a bridge it is told, and another one of its name is news. Bridge is the
// index of the link that has the name; 0: none has it, or nobody knows.
func (r Resolved) suspicious(n names, bridge int) func(netlink.LinkUpdate) bool {
	coming := map[string]bool{}
	return func(u netlink.LinkUpdate) bool {
		a := u.Attrs()
		gone := u.Header.Type == unix.RTM_DELLINK
		switch there := a.Name == r.Link && !gone; {
		case there && a.Index != bridge:
			bridge = a.Index
			return true
		case !there && (a.Name == r.Link || a.Index == bridge):
			bridge = 0
			return true
		}
		if a.Name != n.bridge && a.Name != n.vlan && (a.Name != r.Uplink || r.Mode != Bridge) && !strings.HasPrefix(a.Name, n.tapPrefix()) {
			return false
		}
		inOrder := u.IfInfomsg.Flags&unix.IFF_UP != 0 && (a.Name == n.bridge || a.MasterIndex != 0)
		if gone || inOrder {
			delete(coming, a.Name)
			return false
		}
		if u.IfInfomsg.Change == ^uint32(0) { // registered just now (Linux, net/core/dev.c)
			coming[a.Name] = true
		}
		return !coming[a.Name]
	}
}

// suspiciousAddress tells news of what was taken away, and of IPv6, which our
// links don't have.
func suspiciousAddress(u netlink.AddrUpdate) bool {
	return !u.NewAddr || u.LinkAddress.IP.To4() == nil
}

func (k *keeper) mendAndTell(ctx context.Context) {
	mended, err := k.mend()
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		k.log.Warn("put back what somebody else took away", "cause", err)
	}
	if len(mended) > 0 {
		k.tellEvent(Mended, "", EventDetail{Text: strings.Join(mended, "; ")})
		k.log.Warn("put back what somebody else took away", "steps", strings.Join(mended, "; "))
	}
	if err == nil && len(mended) == 0 {
		return
	}
	select {
	case <-time.After(mendPause):
	case <-ctx.Done():
	}
}

// mend does the steps of the network again whose effect is gone, and returns
// them.
func (k *keeper) mend() ([]string, error) {
	// Most news turn out to be nothing: nobody has to wait while we find out.
	k.mu.Lock()
	k.tellBroken()
	steps := k.lastingSteps()
	k.mu.Unlock()
	if len(steps) == 0 {
		return nil, nil
	}
	links, err := k.w.kernel.Links()
	if err != nil || len(undone(k.w.kernel, steps, links)) == 0 {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if links, err = k.w.kernel.Links(); err != nil {
		return nil, err
	}
	var mended []string
	var errs []error
	for _, o := range undone(k.w.kernel, k.lastingSteps(), links) {
		if err := o.do(k.w); ignoreGone(err) != nil {
			errs = append(errs, fmt.Errorf("%s: %w", o, err))
			continue
		}
		mended = append(mended, o.String())
	}
	return mended, errors.Join(errs...)
}

// tellBroken tells once that somebody has deleted the bridge of a network that is
// up. Where it stood for an uplink, the host's way out is gone with it, and the
// network ends.
func (k *keeper) tellBroken() {
	lost := k.phase == up && k.checkBridge() != nil
	told := k.broken
	k.broken = lost
	switch {
	case !lost || told:
	case k.network.Takeover:
		go k.abandon("somebody has deleted the bridge") // it ends who called us
	default:
		k.tellEvent(Broke, "", EventDetail{Text: fmt.Sprintf("bridge %s is gone", k.network.Link)})
		k.log.Warn("somebody has deleted the bridge: the network's VMs are cut off", "bridge", k.network.Link, "members", len(k.ports))
	}
}

// checkBridge is why nobody can join or hold the network any more; nil while its
// bridge is there. One of the host's may be another by now, one of ours never is.
func (k *keeper) checkBridge() error {
	index, err := k.w.kernel.Index(k.network.Link)
	if errors.Is(err, errGone) || err == nil && !k.network.joined() && index != k.bridge {
		return bridgeGone(k.network.Link)
	}
	return nil
}

func bridgeGone(bridge string) error {
	return &MissingError{Feature: "bridge", Reason: fmt.Sprintf("somebody has deleted its bridge %s", bridge)}
}

// lastingSteps are those whose effect stays while the network is up, and that
// can be done again; none while it is not, or has no bridge.
func (k *keeper) lastingSteps() []step {
	if k.phase != up || k.checkBridge() != nil {
		return nil
	}
	var steps []step
	if r, n := k.network, k.names; !r.joined() {
		if !r.Takeover { // else its settings are the host's
			for _, kv := range bridgeSysctls(r, n.bridge) {
				steps = append(steps, step{do: kv})
			}
		}
		steps = append(steps, uplinkSteps(r, n)...)
		if r.Address.IsValid() {
			steps = append(steps, step{do: addAddress{n.bridge, r.Address}})
		}
		steps = append(steps, step{do: setUp{n.bridge}})
		if back, entries := k.lent(); len(entries) > 0 {
			steps = append(steps, step{do: refill{back}})
		}
	}
	for _, h := range k.ports {
		steps = append(steps, planPort(k.network, k.names, h.Spec)...)
	}
	return steps
}

// undone lists the steps whose effect is gone. A link that is gone, or that
// somebody has put elsewhere, is no longer ours to change.
func undone(k kernel, steps []step, links []Link) []op {
	f := Facts{Links: links}
	var lost []op
	moved := map[string]bool{} // links that go back into their bridge, where their entries are gone
	for _, s := range steps {
		switch o := s.do.(type) {
		case setSysctl:
			if value, err := k.Sysctl(o.Key); err == nil && value != o.Value {
				lost = append(lost, o)
			}
		case enslave:
			l, ok := f.link(o.Link)
			if _, there := f.link(o.Bridge); ok && there && l.Master == 0 {
				lost = append(lost, o)
				moved[o.Link] = true
			}
		case pinMAC:
			if moved[o.Link] {
				lost = append(lost, o)
			}
		case addAddress:
			if l, ok := f.link(o.Link); ok && !slices.Contains(l.Addrs, o.Address) {
				lost = append(lost, o)
			}
		case refill:
			if s, err := k.State(o.back.Bridge); err == nil && o.lost(s) {
				lost = append(lost, o)
			}
		case setUp:
			if l, ok := f.link(o.Link); ok && !l.Up {
				lost = append(lost, o)
			}
		}
	}
	return lost
}
