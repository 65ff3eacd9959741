package firewall

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/nftables"
)

// firewalld rejects what none of its zones lets pass, in a table of its own that
// no accept of another outdoes. It can be asked to trust an interface, as podman
// does: what it is trusted with is judged by our table all the same. That is
// forgotten when firewalld reloads its configuration (firewalld.dbus(5)).
const (
	firewalldTable = "firewalld"
	firewalldName  = "org.fedoraproject.FirewallD1"
	firewalldPath  = "/org/fedoraproject/FirewallD1"
	trustedZone    = "trusted"
)

// FirewalldTable is firewalld's table as Follow names it.
const FirewalldTable = "inet " + firewalldTable

// firewalldTimeout bounds one question: while it reloads, firewalld answers
// nobody for a second or more.
const firewalldTimeout = 10 * time.Second

// Trusted tells whether firewalld trusts a link. ErrAbsent: it does not run, or
// not for this network namespace.
func (h *Host) Trusted(link string) (bool, error) {
	var zone string
	err := h.askFirewalld("getZoneOfInterface", &zone, link)
	return zone == trustedZone, err
}

// Trust has firewalld let a link's traffic pass, until it is reloaded or told
// otherwise.
func (h *Host) Trust(link string) error {
	err := h.askFirewalld("addInterface", nil, trustedZone, link)
	if isException(err, "ALREADY_ENABLED", "ZONE_ALREADY_SET") {
		return nil
	}
	return err
}

// Distrust takes Trust back. ErrAbsent: there is nothing to take back.
func (h *Host) Distrust(link string) error {
	err := h.askFirewalld("removeInterface", nil, trustedZone, link)
	if isException(err, "UNKNOWN_INTERFACE", "NOT_ENABLED", "ZONE_CONFLICT") {
		return fmt.Errorf("%s of zone %s is %w", link, trustedZone, ErrAbsent)
	}
	return err
}

// busyTimeout bounds what a firewalld at work is waited for: rules that are lost have
// to be back within a second.
const busyTimeout = 500 * time.Millisecond

// AwaitFirewalld waits, for half a second at most, until a firewalld that starts or
// reloads has done so: it answers nobody meanwhile. Who changes rules while it does
// can make it fail, since ebtables-restore of iptables 1.8.9 does not find the rules
// that it has to delete when it tries again.
func (h *Host) AwaitFirewalld(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, busyTimeout)
	defer cancel()
	call(ctx, "getDefaultZone", nil) // any answer will do, and none if it does not run
}

// askFirewalld calls a method of its zones. A firewalld that does not filter in
// this network namespace is none.
func (h *Host) askFirewalld(method string, answer any, args ...any) error {
	chains, err := h.tables.baseChains()
	if err != nil {
		return err
	}
	if !filtersFirewalld(chains) {
		return fmt.Errorf("firewalld is %w", ErrAbsent)
	}
	ctx, cancel := context.WithTimeout(context.Background(), firewalldTimeout)
	defer cancel()
	return call(ctx, "zone."+method, answer, args...)
}

// call calls a method of firewalld's, and stores the answer if that is not nil.
func call(ctx context.Context, method string, answer any, args ...any) error {
	bus, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("ask firewalld: %w", err)
	}
	defer bus.Close()
	call := bus.Object(firewalldName, firewalldPath).
		CallWithContext(ctx, firewalldName+"."+method, dbus.FlagNoAutoStart, args...)
	if e, ok := errors.AsType[dbus.Error](call.Err); ok && strings.HasSuffix(e.Name, ".NameHasNoOwner") {
		return fmt.Errorf("firewalld is %w", ErrAbsent)
	}
	if call.Err != nil {
		return fmt.Errorf("ask firewalld: %w", call.Err)
	}
	if answer == nil {
		return nil
	}
	return call.Store(answer)
}

// isException tells firewalld's errors by their codes, with which their texts
// begin.
func isException(err error, codes ...string) bool {
	e, ok := errors.AsType[dbus.Error](err)
	if !ok || len(e.Body) == 0 {
		return false
	}
	text, _ := e.Body[0].(string)
	for _, c := range codes {
		if strings.HasPrefix(text, c) {
			return true
		}
	}
	return false
}

// filtersFirewalld tells whether firewalld's own table is there.
func filtersFirewalld(chains []*nftables.Chain) bool {
	return slices.ContainsFunc(chains, func(c *nftables.Chain) bool { return c.Table.Name == firewalldTable })
}
