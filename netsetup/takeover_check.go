package netsetup

import (
	"fmt"
	"strings"

	"github.com/vmrun/vmrun/netsetup/uplink"
)

// lookAtUplink adds to the facts what has to be known of an uplink that is to
// become a port of a bridge. That takes several programs, so it is left out for
// other networks.
func (f *Facts) lookAtUplink(k kernel, c *claims, spec Spec, n names) error {
	l, ok := f.link(spec.Uplink)
	if spec.Mode != Bridge || !ok {
		return nil
	}
	u, err := k.Inspect(l.Name, n.bridge)
	if err != nil {
		return fmt.Errorf("look at uplink %s: %w", l.Name, err)
	}
	if f.Uplinks == nil {
		f.Uplinks = map[string]uplink.Facts{}
	}
	f.Uplinks[l.Name] = u
	f.Forward[l.Name], err = c.forwardsAlone(k, l.Name)
	return err
}

// checkBridgedUplink finds out whether an interface can become a port of a bridge
// of ours, and says all that is in the way.
func (r *Resolved) checkBridgedUplink(l Link, f Facts) error {
	u := f.Uplinks[l.Name]
	reasons := append([]string{}, u.Firewall...)
	if u.Manager != "" {
		reasons = append(reasons, u.Manager)
	}
	switch {
	case r.Takeover:
		reasons = append(reasons, u.Unmovable...)
	default:
		if uses := usesOf(l, u, f); len(uses) > 0 {
			reasons = append(reasons, fmt.Sprintf("%s is in use by the host (%s); bridging it would cut the host off: takeover = true moves that to the bridge, and back at the end",
				l.Name, strings.Join(uses, ", ")))
		}
	}
	if len(reasons) > 0 {
		return conflict("uplink", "%s", strings.Join(reasons, "; "))
	}
	if r.Takeover && r.MTU != 0 && r.MTU != l.MTU {
		return conflict("mtu", "%s has %d bytes, and the bridge that takes it over is the host's way out: leave mtu out", l.Name, l.MTU)
	}
	return nil
}

// usesOf says what the host has an interface for.
func usesOf(l Link, u uplink.Facts, f Facts) []string {
	var uses []string
	for _, a := range l.Addrs {
		if !a.Addr().IsLinkLocalUnicast() { // every link has one of IPv6
			uses = append(uses, fmt.Sprintf("it has %s", a))
		}
	}
	for _, a := range u.Addresses {
		if a.Limited() && !a.IsLinkLocal() {
			uses = append(uses, fmt.Sprintf("%s is of limited lifetime, and who renews it could no longer", a.Prefix))
		}
	}
	for _, route := range f.Routes {
		if route.Link != l.Name || route.Dst.Addr().IsLinkLocalUnicast() || route.Dst.Addr().IsMulticast() {
			continue
		}
		if route.Dst.Bits() == 0 {
			uses = append(uses, fmt.Sprintf("%s, the default route, is routed to it", route.Dst))
		} else {
			uses = append(uses, fmt.Sprintf("%s is routed to it", route.Dst))
		}
	}
	for _, rule := range u.Rules {
		uses = append(uses, fmt.Sprintf("policy rule %s names it and would stop matching", rule))
	}
	return uses
}
