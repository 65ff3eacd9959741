package netsetup

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vmrun/vmrun/netsetup/uplink"
	"golang.org/x/sys/unix"
)

// giveBack gives an uplink what it had, as the bridge has it by now: lifetimes
// that were renewed, and what others have added or removed meanwhile. Where the
// bridge is gone or down, and with it what was on it, it is what the uplink had.
type giveBack struct {
	Uplink string        `json:"uplink"`
	Index  int           `json:"index"` // of the uplink: another one of its name has never had anything
	Bridge string        `json:"bridge"`
	Group  uint32        `json:"group,omitempty"` // of the bridge: nobody else's of its name has anything of the uplink's; 0: not noted
	State  uplink.State  `json:"state"`
	Read   time.Duration `json:"read"` // the host's uptime at the time of State
}

func (o giveBack) kind() string { return "give-back" }

func (o giveBack) String() string {
	return fmt.Sprintf("give back to %s what %s has by then", o.Uplink, o.Bridge)
}

func (o giveBack) do(w *effects) error {
	links, err := w.kernel.Links()
	if err != nil {
		return err
	}
	f := Facts{Links: links}
	link, ok := f.byIndex(o.Index)
	if !ok {
		return nil // it was unplugged
	}
	before, err := w.kernel.State(link.Name)
	if err != nil {
		return err
	}
	bridge, bridged := f.link(o.Bridge)
	bridged = bridged && (o.Group == 0 || bridge.Group == o.Group)
	var theirs uplink.State
	if bridged {
		if theirs, err = w.kernel.State(bridge.Name); err != nil {
			return err
		}
	}
	wanted := theirs.With(before)
	if !bridged || !bridge.Up {
		wanted = wanted.With(o.State.Later(w.kernel.Uptime() - o.Read))
	}
	errs := []error{clearForOrder(w, link.Name, before, theirs)}
	errs = append(errs, putAll(link.Name, missingOrNewer(before, theirs, wanted), w.kernel.PutAddress))
	errs = append(errs, putRest(w, link.Name, before, wanted))
	if bridged {
		errs = append(errs, w.kernel.ShareNeighbours(bridge.Name, link.Name))
		errs = append(errs, strip{bridge.Name, link.Name, theirs}.do(w))
		errs = append(errs, ignoreGone(w.kernel.Release(link.Name, bridge.Name)))
	}
	solicit(w, link.Name, wanted.With(o.State)) // what has ended, too
	err = errors.Join(errs...)
	if err != nil && baseless(err) {
		return incomplete{err}
	}
	return err
}

// incomplete says what an undo could not do, and no later one can. The rest of it is
// done.
type incomplete struct{ error }

func (e incomplete) Unwrap() error { return e.error }

// baseless tells whether nothing has failed but what needs something that is not
// there any more, such as a route its gateway's subnet or its source, whose address
// has ended, or another interface. A link that is down has its own word, ENETDOWN.
func baseless(err error) bool {
	if all, ok := err.(interface{ Unwrap() []error }); ok {
		return !slices.ContainsFunc(all.Unwrap(), func(err error) bool { return !baseless(err) })
	}
	for _, errno := range []error{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EINVAL, unix.ENODEV} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// clearForOrder takes from the uplink what the bridge has as well, where the
// bridge has more: a crash left the uplink with a part of its addresses, and they
// have to be put back in their order, by which the kernel chooses among them.
func clearForOrder(w *effects, link string, before, theirs uplink.State) error {
	var both []uplink.Address
	complete := true
	for _, a := range theirs.Addresses {
		switch {
		case a.IsLinkLocal():
		case before.HasAddress(a):
			both = append(both, a)
		default:
			complete = false
		}
	}
	if complete {
		return nil
	}
	return delAll(link, both, w.kernel.DelAddress)
}

// missingOrNewer lists the addresses to put onto the uplink: those of the bridge,
// which may have been renewed, and others that it lacks. Each interface has its own
// link-local ones.
func missingOrNewer(before, theirs, wanted uplink.State) []uplink.Address {
	return slices.DeleteFunc(slices.Clone(wanted.Addresses), func(a uplink.Address) bool {
		return before.HasAddress(a) && (a.IsLinkLocal() || !theirs.HasAddress(a))
	})
}

// refill puts back onto the bridge what the uplink had, after somebody has set the
// bridge down: the kernel drops its routes then, and its IPv6 addresses.
type refill struct{ back giveBack }

func (o refill) String() string {
	return fmt.Sprintf("put back onto %s what %s had", o.back.Bridge, o.back.Uplink)
}

// lost tells a bridge without any route: nobody means that.
func (o refill) lost(now uplink.State) bool {
	return len(now.Routes) == 0 && len(o.back.State.Routes) > 0
}

func (o refill) do(w *effects) error {
	now, err := w.kernel.State(o.back.Bridge)
	if err != nil {
		return err
	}
	wanted := now.With(o.back.State.Later(w.kernel.Uptime() - o.back.Read))
	return errors.Join(putAll(o.back.Bridge, wanted.Addresses[len(now.Addresses):], w.kernel.PutAddress),
		putRest(w, o.back.Bridge, now, wanted))
}
