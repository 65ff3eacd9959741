package netsetup

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmrun/vmrun/netsetup/firewall"
)

// If somebody takes our rules away, with all others' or on purpose, they come
// back within a second. A change of nftables is told by the kernel; legacy
// iptables are looked at twice a second.
const (
	// settleTime is how long changes that come in bursts are waited for.
	settleTime = 100 * time.Millisecond
	// restorePause is between two restorings: whoever takes the rules away
	// again and again keeps nobody busy.
	restorePause = 500 * time.Millisecond
	// legacyPeriod is how often legacy iptables are looked at.
	legacyPeriod = 500 * time.Millisecond
)

// ruleNews collects what has changed in the firewall.
type ruleNews struct {
	mu     sync.Mutex
	tables map[string]bool // of nftables
	legacy bool
	again  bool // legacy iptables are to be taken for changed: see restored
	wake   chan struct{}
}

func newRuleNews() *ruleNews {
	return &ruleNews{tables: map[string]bool{}, wake: make(chan struct{}, 1)}
}

// add notes a change of a table.
func (n *ruleNews) add(table string) { n.note(func() { n.tables[table] = true }) }

func (n *ruleNews) note(change func()) {
	n.mu.Lock()
	change()
	n.mu.Unlock()
	select {
	case n.wake <- struct{}{}:
	default: // there is news already
	}
}

// restored notes that we have put rules back: who takes them away again before
// legacy iptables are looked at leaves them as they were at the last look.
func (n *ruleNews) restored() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.again = true
}

// anew tells whether restored was called since it was called last.
func (n *ruleNews) anew() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	again := n.again
	n.again = false
	return again
}

// changed are those that may have lost something of ours.
type changed struct{ ours, iptables, firewalld bool }

// take returns what has changed since it was called last. Own is the table of the
// network.
func (n *ruleNews) take(own string) changed {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := n.tables[firewall.Everything]
	c := changed{
		ours:      all || n.tables[own],
		iptables:  all || n.legacy || n.tables["filter"] || n.tables["nat"],
		firewalld: all || n.tables[firewall.FirewalldTable],
	}
	n.tables, n.legacy = map[string]bool{}, false
	return c
}

// followRules keeps the network's rules where they are until ctx ends.
func (k *keeper) followRules(ctx context.Context) {
	if k.network.Backend == "" {
		return // there are none
	}
	news := newRuleNews()
	go k.followTables(ctx, news)
	go k.followLegacy(ctx, news)
	go func() {
		for {
			select {
			case <-news.wake:
			case <-ctx.Done():
				return
			}
			sleep(ctx, settleTime)
			restored, err := k.restoreRules(ctx, news.take(firewall.Table(k.names.id)))
			if err != nil {
				k.log.Error("restore rules", "cause", err)
			}
			if restored {
				news.restored()
			}
			if restored || err != nil {
				sleep(ctx, restorePause)
			}
		}
	}()
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// followTables waits for the kernel's news; whatever was missed is looked for.
func (k *keeper) followTables(ctx context.Context, news *ruleNews) {
	for ctx.Err() == nil {
		if err := firewall.Follow(ctx, news.add); err != nil {
			k.log.Warn("missed news of the kernel", "cause", err)
			sleep(ctx, time.Second)
		}
	}
}

func (k *keeper) followLegacy(ctx context.Context, news *ruleNews) {
	tick := time.NewTicker(legacyPeriod)
	defer tick.Stop()
	last, again, told := "", false, false
	for {
		again = news.anew() || again // before the look
		now, err := firewall.LegacyPrint()
		switch {
		case err != nil && !told:
			k.log.Warn("follow iptables", "cause", err)
			told = true
		case err == nil && (again || now != last):
			last, again = now, false
			news.note(func() { news.legacy = true })
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// restoreRules puts back those of the network's rules that are lost, and has
// others' iptables hear of the network that did not filter before. It looks only
// at what has changed.
func (k *keeper) restoreRules(ctx context.Context, c changed) (restored bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	lost, blocking, err := k.lostRules(c)
	if len(lost) > 0 { // it may have been firewalld, and not be done
		k.mu.Unlock()
		k.w.kernel.AwaitFirewalld(ctx)
		k.mu.Lock()
		lost, blocking, err = k.lostRules(c)
	}
	if err != nil || k.phase != up {
		return false, err
	}
	var errs []error
	for _, r := range lost {
		errs = append(errs, k.w.kernel.ReplaceRules(r))
	}
	if len(lost) > 0 {
		k.tellEvent(Restored, "", EventDetail{Text: fmt.Sprintf("rules of %v", backendsOf(lost))})
		k.log.Warn("somebody took the network's rules away, they are back", "network", k.network.Name, "backends", backendsOf(lost))
	}
	errs = append(errs, k.tellFilters(blocking))
	if c.firewalld {
		errs = append(errs, k.restoreTrust())
	}
	return len(lost) > 0, errors.Join(errs...)
}

// lostRules are those of the network's rules that are lost, and others' iptables
// that have to hear of it.
func (k *keeper) lostRules(c changed) ([]firewall.Rules, []firewall.Filter, error) {
	if k.phase != up || c == (changed{}) {
		return nil, nil, nil
	}
	blocking, err := k.blocking(c.iptables)
	if err != nil {
		return nil, nil, err
	}
	lost, err := k.w.kernel.LostRules(k.rules(c.ours, c.iptables, blocking))
	return lost, blocking, err
}

// restoreTrust has firewalld trust the network's bridge if it does not: because
// it has reloaded, or started only now.
func (k *keeper) restoreTrust() error {
	link := k.network.Link
	if k.network.Takeover {
		return nil
	}
	trusted, err := k.w.kernel.Trusted(link)
	if err != nil || trusted {
		return ignoreGone(err)
	}
	k.tellEvent(Restored, "", EventDetail{Text: "firewalld's trust"})
	k.log.Warn("firewalld knew nothing of the network, and is told again", "network", k.network.Name)
	for _, u := range k.journal.undos() {
		if u == undoOp(distrust{link}) {
			return ignoreGone(k.w.kernel.Trust(link))
		}
	}
	return apply(k.w, k.journal, []step{{trust{link}, distrust{link}}})
}

// blocking are others' iptables that have to hear of the network.
func (k *keeper) blocking(iptables bool) ([]firewall.Filter, error) {
	if !iptables || k.network.Backend != firewall.NFTables {
		return nil, nil
	}
	wish, err := k.wish(k.network.Spec)
	if err != nil {
		return nil, err
	}
	filters, err := k.w.kernel.Filters()
	return firewall.Facts{Filters: filters}.Blocking(wish, k.network.Backend), err
}

func backendsOf(all []firewall.Rules) []firewall.Backend {
	names := map[firewall.Backend]bool{}
	for _, r := range all {
		names[r.Backend] = true
	}
	return slices.Sorted(maps.Keys(names))
}

// tellFilters has iptables of others hear of the network that have not yet.
func (k *keeper) tellFilters(blocking []firewall.Filter) error {
	var errs []error
	for _, f := range blocking {
		if !slices.ContainsFunc(k.journalledChains(), func(d delRules) bool { return d.Backend == f.Backend }) {
			k.log.Info("others filter, and are told what passes", "backend", f.Backend)
			errs = append(errs, apply(k.w, k.journal, []step{rulesStep(firewall.NewAccepts(rulesOf(k.network, k.names), f))}))
		}
	}
	return errors.Join(errs...)
}

// rules are those that the journal says are on the host: with nftables one set;
// with iptables the network's, one for each link, or those for others'. These
// are left out where nothing is filtered any more.
func (k *keeper) rules(ours, iptables bool, blocking []firewall.Filter) []firewall.Rules {
	net := rulesOf(k.network, k.names)
	var all []firewall.Rules
	if ours && k.network.Backend == firewall.NFTables {
		all = append(all, k.lastingRules())
	}
	if !iptables {
		return all
	}
	for _, d := range k.journalledChains() {
		docker := d.Chains[0].Hooks[0].From != "FORWARD"
		switch link := k.transitLink(d); {
		case link != "":
			all = append(all, firewall.NewTransit(net, d.Backend, docker, link))
		case d.Backend == k.network.Backend:
			r := firewall.NewRules(net, d.Backend)
			r.Docker = docker
			all = append(all, r)
		case slices.ContainsFunc(blocking, func(f firewall.Filter) bool { return f.Backend == d.Backend }):
			all = append(all, firewall.NewAccepts(net, firewall.Filter{Backend: d.Backend, Docker: docker}))
		}
	}
	return all
}

// lastingRules are the network's in nftables, with the links that were added.
func (k *keeper) lastingRules() firewall.Rules {
	r := firewall.NewRules(rulesOf(k.network, k.names), firewall.NFTables)
	for _, u := range k.journal.undos() {
		if d, ok := u.(delTransit); ok {
			r.Links = append(r.Links, d.Link)
		}
	}
	slices.Sort(r.Links)
	return r
}

// journalledChains are the chains of iptables that the network has.
func (k *keeper) journalledChains() []delRules {
	var all []delRules
	for _, u := range k.journal.undos() {
		if d, ok := u.(delRules); ok {
			all = append(all, d)
		}
	}
	return all
}

// transitLink is the link that chains keep from transit; "" where they are others.
func (k *keeper) transitLink(d delRules) string {
	link := strings.TrimPrefix(d.Chains[0].Hooks[0].Match, "-i ")
	r := firewall.NewTransit(rulesOf(k.network, k.names), d.Backend, false, link)
	if d.Chains[0].Name != r.Jumped()[0].Name {
		return ""
	}
	return link
}

// adoptRules puts the rules of a keeper that died in place again, at once: what
// only permits has gone with it. Nothing passes meanwhile that should not.
func (k *keeper) adoptRules() error {
	if k.network.Backend != firewall.NFTables {
		return nil // they go with nobody
	}
	return k.w.kernel.ReplaceRules(k.lastingRules())
}
