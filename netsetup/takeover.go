package netsetup

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmrun/vmrun/netsetup/uplink"
)

// A used uplink is taken over by a bridge that stands for it: it has the uplink's
// MAC and settings, and whatever IP had on the uplink. All of that is put onto
// the bridge before anything is taken from the uplink, and the other way round at
// the end: connections live on, and at each moment either of the two has what a
// crash must not lose.

// takeoverSteps bring the network up over an uplink in use.
func takeoverSteps(r Resolved, n names, f Facts) []step {
	u := f.Uplinks[r.Uplink]
	l, _ := f.link(r.Uplink)
	forwarding := "0"
	if f.Forward[r.Uplink] {
		forwarding = "1"
	}
	back := giveBack{Uplink: r.Uplink, Index: l.Index, Bridge: n.bridge, Group: n.group, State: u.State, Read: u.Read}
	steps := []step{
		{do: note{"start a process that undoes all this should the keeper die"}},
		{addBridge{Name: n.bridge, Title: n.title, MAC: l.MAC, MTU: r.MTU, Group: n.group}, delLinks{n.group, []string{n.bridge}, []string{n.title}}},
		// Its link-local address is the uplink's and comes with the others.
		{do: setSysctl{"net/ipv6/conf/" + n.bridge + "/addr_gen_mode", "1"}},
		{do: copySettings{r.Uplink, n.bridge}},
		{do: setSysctl{"net/ipv4/conf/" + n.bridge + "/forwarding", forwarding}},
		{do: setUp{n.bridge}},
	}
	steps = append(steps, rulesSteps(r, n, f)...)
	steps = append(steps, []step{
		{putAddresses{n.bridge, r.Uplink, u.Addresses}, back},
		{do: enslave{r.Uplink, n.bridge}},
		{do: awaitUp{n.bridge}},
		{do: putRoutes{n.bridge, r.Uplink, u.State}},
	}...)
	if len(u.Rules) > 0 {
		steps = append(steps, step{addPolicyRules{n.bridge, u.Rules}, delPolicyRules{n.bridge, u.Rules}})
	}
	steps = append(steps, step{do: strip{r.Uplink, n.bridge, u.State}})
	if gateways := u.Gateways(); len(gateways) > 0 {
		steps = append(steps, step{do: awaitGateways{n.bridge, gateways}})
	}
	return steps
}

// copySettings gives a link the sysctls of another one, where they differ. They
// die with the link.
type copySettings struct{ From, To string }

func (o copySettings) String() string {
	return fmt.Sprintf("give %s the settings of %s (net.ipv4 and net.ipv6, conf and neigh)", o.To, o.From)
}

func (o copySettings) do(w *effects) error {
	wanted, err := w.kernel.Settings(o.From, o.To)
	if err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(wanted)) {
		now, err := w.kernel.Sysctl(key)
		if errors.Is(err, errGone) || err == nil && now == wanted[key] {
			continue
		}
		if err != nil {
			return err
		}
		if err := w.kernel.SetSysctl(key, wanted[key]); err != nil {
			return fmt.Errorf("set %s: %w", key, err)
		}
	}
	return nil
}

// putAddresses puts addresses onto the bridge that the uplink has, too.
type putAddresses struct {
	Bridge, Uplink string
	Addresses      []uplink.Address
}

func (o putAddresses) String() string {
	return fmt.Sprintf("put the addresses of %s onto %s: %s", o.Uplink, o.Bridge, listed(o.Addresses))
}

func (o putAddresses) do(w *effects) error { return putAll(o.Bridge, o.Addresses, w.kernel.PutAddress) }

// unanswered says that the host would not have been connected over the bridge.
type unanswered struct {
	*ConflictError
	cause error
}

func newUnanswered(cause error, format string, args ...any) error {
	return unanswered{&ConflictError{Key: "uplink", Reason: fmt.Sprintf(format, args...)}, cause}
}

func (e unanswered) Unwrap() []error { return []error{e.ConflictError, e.cause} }

// awaitUp waits until the bridge transmits: before, the host does over the uplink.
type awaitUp struct{ Bridge string }

func (o awaitUp) String() string {
	return fmt.Sprintf("await that %s transmits, up to %s", o.Bridge, gatewayTimeout)
}

func (o awaitUp) do(w *effects) error {
	ctx, cancel := context.WithTimeout(context.Background(), gatewayTimeout)
	defer cancel()
	if err := w.kernel.AwaitUp(ctx, o.Bridge); err != nil {
		return newUnanswered(err, "the bridge does not come up within %s (%v), so the uplink was given back", gatewayTimeout, err)
	}
	return nil
}

// putRoutes puts routes and neighbours onto the bridge that the uplink has, too.
type putRoutes struct {
	Bridge, Uplink string
	State          uplink.State
}

func (o putRoutes) String() string {
	text := fmt.Sprintf("put the routes of %s onto %s: %s", o.Uplink, o.Bridge, listed(o.State.Routes))
	if len(o.State.Neighbours) > 0 {
		text += "; and " + listed(o.State.Neighbours)
	}
	return text
}

func (o putRoutes) do(w *effects) error {
	defer solicit(w, o.Bridge, o.State)
	err := putRest(w, o.Bridge, uplink.State{}, o.State)
	return errors.Join(err, w.kernel.ShareNeighbours(o.Uplink, o.Bridge))
}

// solicit asks the routers that a link has its routes from for news, which make
// these the kernel's own again. Without, they come in their own time.
func solicit(w *effects, link string, s uplink.State) {
	if slices.ContainsFunc(s.Routes, func(r uplink.Route) bool { return r.Advertised }) {
		w.kernel.Solicit(link)
	}
}

// putRest puts routes and neighbours onto a link and takes away the routes that
// the kernel has made for its addresses and that were not asked for.
func putRest(w *effects, link string, before, wanted uplink.State) error {
	err := putInTurn(w, link, wanted.Sorted())
	err = errors.Join(err, putAll(link, wanted.Neighbours, w.kernel.PutNeighbour))
	now, stateErr := w.kernel.State(link)
	if stateErr != nil {
		return errors.Join(err, stateErr)
	}
	return errors.Join(err, delAll(link, uplink.Surplus(now, before, wanted), w.kernel.DelRoute))
}

// putInTurn puts routes of which one may need another to be there: as long as one
// more can be put, those that failed are tried again.
func putInTurn(w *effects, link string, routes []uplink.Route) error {
	for {
		var failed []uplink.Route
		var errs []error
		for _, r := range routes {
			if err := w.kernel.PutRoute(link, r); err != nil {
				failed, errs = append(failed, r), append(errs, fmt.Errorf("route %s: %w", r, err))
			}
		}
		if len(failed) == 0 || len(failed) == len(routes) {
			return errors.Join(errs...)
		}
		routes = failed
	}
}

// putAll puts everything onto a link, past failures.
func putAll[T fmt.Stringer](link string, all []T, put func(string, T) error) error {
	var errs []error
	for _, v := range all {
		if err := put(link, v); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", v, err))
		}
	}
	return errors.Join(errs...)
}

// delAll takes everything from a link that is there, past failures.
func delAll[T fmt.Stringer](link string, all []T, del func(string, T) error) error {
	return putAll(link, all, func(link string, v T) error { return ignoreGone(del(link, v)) })
}

func listed[T fmt.Stringer](all []T) string {
	if len(all) == 0 {
		return "none"
	}
	var texts []string
	for _, v := range all {
		texts = append(texts, v.String())
	}
	return strings.Join(texts, ", ")
}

// addPolicyRules makes the policy rules that name the uplink for the bridge as
// well. The uplink's stay, without effect as long as it is a port.
type addPolicyRules struct {
	Bridge string
	Rules  []uplink.Rule
}

func (o addPolicyRules) String() string {
	return fmt.Sprintf("add policy rules for %s beside the uplink's: %s", o.Bridge, listed(o.Rules))
}

func (o addPolicyRules) do(w *effects) error {
	return putAll(o.Bridge, o.Rules, w.kernel.AddPolicyRule)
}

// delPolicyRules takes the bridge's policy rules away.
type delPolicyRules struct {
	Bridge string        `json:"bridge"`
	Rules  []uplink.Rule `json:"rules"`
}

func (o delPolicyRules) kind() string { return "del-policy-rules" }

func (o delPolicyRules) String() string {
	return fmt.Sprintf("delete policy rules for %s: %s", o.Bridge, listed(o.Rules))
}

func (o delPolicyRules) do(w *effects) error {
	return delAll(o.Bridge, o.Rules, w.kernel.DelPolicyRule)
}

// strip takes from a link what the other one has by now. Link-local addresses
// stay: each interface has its own, and the kernel would make them anew.
type strip struct {
	Link, Other string
	State       uplink.State
}

func (o strip) String() string {
	return fmt.Sprintf("take from %s what %s has by now", o.Link, o.Other)
}

func (o strip) do(w *effects) error {
	routes := o.State.Sorted()
	slices.Reverse(routes)
	err := delAll(o.Link, routes, w.kernel.DelRoute)
	addresses := slices.DeleteFunc(slices.Clone(o.State.Addresses), uplink.Address.IsLinkLocal)
	return errors.Join(err, delAll(o.Link, addresses, w.kernel.DelAddress))
}

// gatewayTimeout is how long the way out may take to answer over the bridge.
const gatewayTimeout = 5 * time.Second

// awaitGateways makes sure that the host is still connected: of each family that
// has a way out, one of its gateways has to answer.
type awaitGateways struct {
	Bridge   string
	Gateways map[bool][]netip.Addr // by family: IPv6 or not
}

func (o awaitGateways) String() string {
	var all []string
	for _, six := range []bool{false, true} {
		for _, g := range o.Gateways[six] {
			all = append(all, g.String())
		}
	}
	return fmt.Sprintf("await an answer of the gateway on %s, up to %s: %s", o.Bridge, gatewayTimeout, strings.Join(all, ", "))
}

func (o awaitGateways) do(w *effects) error {
	ctx, cancel := context.WithTimeout(context.Background(), gatewayTimeout)
	defer cancel()
	for _, six := range []bool{false, true} {
		if len(o.Gateways[six]) == 0 {
			continue
		}
		if err := awaitOne(ctx, w, o.Bridge, o.Gateways[six]); err != nil {
			return newUnanswered(err, "the default gateway does not answer on the bridge within %s (%v), so the uplink was given back: try again when it answers", gatewayTimeout, err)
		}
	}
	return nil
}

// awaitOne waits for the first of several neighbours.
func awaitOne(ctx context.Context, w *effects, link string, all []netip.Addr) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, len(all))
	var waiting sync.WaitGroup
	for i, ip := range all {
		waiting.Go(func() {
			if errs[i] = w.kernel.AwaitNeighbour(ctx, link, ip); errs[i] == nil {
				cancel()
			}
		})
	}
	waiting.Wait()
	if slices.Contains(errs, nil) {
		return nil
	}
	return errors.Join(errs...)
}
