// Package libvirt asks a libvirt daemon of this host about its virtual
// networks, and starts and stops them.
//
// Each call is a conversation of its own over the daemon's unix socket, which
// ends with its context: a daemon that hangs holds nobody up for longer.
package libvirt

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	rpc "github.com/digitalocean/go-libvirt"
)

// ErrAbsent says that no daemon listens on any of the sockets.
var ErrAbsent = errors.New("no libvirt daemon listens")

// ErrGone says that the daemon has no such network, or that it is not active.
var ErrGone = errors.New("no such active network")

// DefaultSockets are where a daemon may listen: the network daemon of a modular
// libvirt, then the one daemon for everything (libvirt's daemons.html).
func DefaultSockets() []string {
	return []string{"/run/libvirt/virtnetworkd-sock", "/run/libvirt/libvirt-sock"}
}

// Daemon is the libvirt daemon behind the first of the sockets that answers.
// Its methods may be called from several goroutines.
type Daemon struct {
	Sockets []string
}

// Network is a virtual network of libvirt's, active or only defined.
type Network struct {
	Name   string
	UUID   string // 32 hexadecimal digits
	Active bool
	Mode   string         // of forwarding: "nat", "route", "bridge", "hostdev", …; "" is isolated
	Bridge string         // of the host; "" where guests get no port of a bridge
	MTU    int            // in bytes; 0: libvirt's default, 1500
	Ranges []netip.Prefix // of its addresses and routes, both families
}

// Networks lists all networks.
func (d Daemon) Networks(ctx context.Context) ([]Network, error) {
	return converse(ctx, d, "list networks", func(c *rpc.Libvirt) ([]Network, error) {
		all, _, err := c.ConnectListAllNetworks(1, rpc.ConnectListNetworksActive|rpc.ConnectListNetworksInactive)
		if err != nil {
			return nil, err
		}
		active, _, err := c.ConnectListAllNetworks(1, rpc.ConnectListNetworksActive)
		if err != nil {
			return nil, err
		}
		var networks []Network
		for _, n := range all {
			text, err := c.NetworkGetXMLDesc(n, 0)
			if hasCode(err, rpc.ErrNoNetwork) {
				continue // it was removed meanwhile
			}
			if err != nil {
				return nil, err
			}
			described, err := parseNetwork(text)
			if err != nil {
				return nil, fmt.Errorf("network %s: %w", n.Name, err)
			}
			described.UUID = hex.EncodeToString(n.UUID[:])
			described.Active = slices.Contains(active, n)
			networks = append(networks, described)
		}
		return networks, nil
	})
}

// Start makes a network active and tells whether it was not before.
func (d Daemon) Start(ctx context.Context, uuid string) (started bool, err error) {
	return converse(ctx, d, "start network", func(c *rpc.Libvirt) (bool, error) {
		n, active, err := find(c, uuid)
		if err != nil || active {
			return false, err
		}
		err = c.NetworkCreate(n)
		if hasCode(err, rpc.ErrOperationInvalid) { // somebody was quicker, or it can't be
			if _, active, _ := find(c, uuid); active {
				return false, nil
			}
		}
		return err == nil, err
	})
}

// Stop ends an active network; ErrGone where there is none.
func (d Daemon) Stop(ctx context.Context, uuid string) error {
	_, err := converse(ctx, d, "stop network", func(c *rpc.Libvirt) (bool, error) {
		n, active, err := find(c, uuid)
		if err != nil {
			return false, err
		}
		if !active {
			return false, ErrGone
		}
		return true, c.NetworkDestroy(n)
	})
	return err
}

// Lease is an address that libvirt's DHCP has given.
type Lease struct {
	IP      netip.Addr // zero: none
	Expires time.Time  // zero: never
}

// Lease finds the newest IPv4 lease of a MAC address on an active network.
func (d Daemon) Lease(ctx context.Context, uuid string, mac net.HardwareAddr) (Lease, error) {
	return converse(ctx, d, "list leases", func(c *rpc.Libvirt) (Lease, error) {
		n, _, err := find(c, uuid)
		if err != nil {
			return Lease{}, err
		}
		leases, _, err := c.NetworkGetDhcpLeases(n, rpc.OptString{mac.String()}, 1, 0)
		if err != nil {
			return Lease{}, err
		}
		var newest Lease
		for _, l := range leases {
			ip, err := netip.ParseAddr(l.Ipaddr)
			if err != nil || !ip.Is4() {
				continue
			}
			found := Lease{IP: ip}
			if l.Expirytime > 0 {
				found.Expires = time.Unix(l.Expirytime, 0)
			}
			if !newest.IP.IsValid() || found.Expires.IsZero() || found.Expires.After(newest.Expires) {
				newest = found
			}
		}
		return newest, nil
	})
}

// find looks a network up by the UUID in its text form.
func find(c *rpc.Libvirt, uuid string) (n rpc.Network, active bool, err error) {
	var id rpc.UUID
	raw, err := hex.DecodeString(strings.ReplaceAll(uuid, "-", ""))
	if err != nil || copy(id[:], raw) != len(id) {
		return n, false, fmt.Errorf("%q is no UUID", uuid)
	}
	n, err = c.NetworkLookupByUUID(id)
	if hasCode(err, rpc.ErrNoNetwork) {
		return n, false, ErrGone
	}
	if err != nil {
		return n, false, err
	}
	state, err := c.NetworkIsActive(n)
	return n, state == 1, err
}

func hasCode(err error, code rpc.ErrorNumber) bool {
	failed, ok := errors.AsType[rpc.Error](err)
	return ok && failed.Code == uint32(code)
}
