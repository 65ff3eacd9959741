package netsetup

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/vmrun/vmrun/netsetup/uplink"
	"golang.org/x/sys/unix"
)

// takeoverKernel is the part of the seam that taking a used uplink over needs.
type takeoverKernel interface {
	// Inspect looks at an interface that is to become a port of a bridge.
	Inspect(link, bridge string) (uplink.Facts, error)
	// State is what IP has on a link.
	State(link string) (uplink.State, error)
	// Settings lists the sysctls of a link that another one may have as well, by
	// their keys for that other one.
	Settings(link, other string) (map[string]string, error)

	// Putting what is there already is no error; taking away what is not is
	// errGone.
	PutAddress(link string, a uplink.Address) error
	DelAddress(link string, a uplink.Address) error
	PutRoute(link string, r uplink.Route) error
	DelRoute(link string, r uplink.Route) error
	PutNeighbour(link string, n uplink.Neighbour) error
	AddPolicyRule(link string, r uplink.Rule) error
	DelPolicyRule(link string, r uplink.Rule) error

	// ShareNeighbours tells a link what another one knows of its neighbours.
	ShareNeighbours(from, to string) error

	// Release takes a link out of a bridge; errGone where it is not in it.
	Release(link, bridge string) error
	// AwaitUp waits until a link transmits.
	AwaitUp(ctx context.Context, link string) error
	// Solicit asks routers to advertise themselves.
	Solicit(link string) error
	// AwaitNeighbour asks for a neighbour and waits for its answer.
	AwaitNeighbour(ctx context.Context, link string, ip netip.Addr) error
	// Uptime is the host's, by which lifetimes run.
	Uptime() time.Duration
}

func (h *host) Inspect(link, bridge string) (uplink.Facts, error) {
	index, err := h.Index(link)
	if err != nil {
		return uplink.Facts{}, err
	}
	return uplink.Inspect(link, bridge, index)
}

func (h *host) State(link string) (uplink.State, error) {
	index, err := h.Index(link)
	if err != nil {
		return uplink.State{}, err
	}
	return uplink.Read(link, index)
}

// own are sysctls that no other link may have: what the kernel derives, and what
// a step of its own sets.
var own = map[string]bool{"forwarding": true, "mc_forwarding": true, "stable_secret": true, "addr_gen_mode": true}

func (h *host) Settings(link, other string) (map[string]string, error) {
	all := map[string]string{}
	for _, family := range []string{"ipv4/conf", "ipv4/neigh", "ipv6/conf", "ipv6/neigh"} {
		files, err := filepath.Glob(filepath.Join("/proc/sys/net", family, link, "*"))
		if err != nil {
			return nil, fmt.Errorf("list settings of %s: %w", link, err)
		}
		for _, path := range files {
			name := filepath.Base(path)
			if own[name] {
				continue
			}
			value, err := h.Sysctl(filepath.Join("net", family, link, name))
			if errors.Is(err, os.ErrPermission) {
				continue // it can only be written
			}
			if err != nil {
				return nil, err
			}
			all[filepath.Join("net", family, other, name)] = value
		}
	}
	return all, nil
}

// absent makes the kernel's words for what is not there the seam's.
func absent(err error) error {
	for _, errno := range []error{unix.ESRCH, unix.EADDRNOTAVAIL, unix.ENOENT, unix.ENODEV} {
		if errors.Is(err, errno) {
			return errGone
		}
	}
	return err
}

func (h *host) PutAddress(link string, a uplink.Address) error {
	index, err := h.Index(link)
	if err != nil {
		return err
	}
	return uplink.PutAddress(link, index, a)
}

func (h *host) DelAddress(link string, a uplink.Address) error {
	index, err := h.Index(link)
	if err != nil {
		return err
	}
	return absent(uplink.DelAddress(link, index, a))
}

func (h *host) PutRoute(link string, r uplink.Route) error {
	index, err := h.Index(link)
	if err != nil {
		return err
	}
	return uplink.PutRoute(link, index, r)
}

func (h *host) DelRoute(link string, r uplink.Route) error {
	index, err := h.Index(link)
	if err != nil {
		return err
	}
	return absent(uplink.DelRoute(index, r))
}

func (h *host) PutNeighbour(link string, n uplink.Neighbour) error {
	index, err := h.Index(link)
	if err != nil {
		return err
	}
	return uplink.PutNeighbour(index, n)
}

func (h *host) ShareNeighbours(from, to string) error {
	index, err := h.Index(from)
	if err != nil {
		return err
	}
	other, err := h.Index(to)
	if err != nil {
		return err
	}
	return uplink.ShareNeighbours(index, other)
}

func (h *host) AddPolicyRule(link string, r uplink.Rule) error { return uplink.AddRule(link, r) }

func (h *host) DelPolicyRule(link string, r uplink.Rule) error {
	return absent(uplink.DelRule(link, r))
}

func (h *host) Release(link, bridge string) error {
	index, err := h.Index(link)
	if err != nil {
		return err
	}
	master, err := h.Index(bridge)
	if err != nil {
		return err
	}
	l, err := h.nl.LinkByIndex(index)
	if err != nil {
		return absent(err)
	}
	if l.Attrs().MasterIndex != master {
		return fmt.Errorf("interface %s in %s is %w", link, bridge, errGone)
	}
	return h.nl.LinkSetNoMaster(l)
}

func (h *host) AwaitUp(ctx context.Context, link string) error {
	index, err := h.Index(link)
	if err != nil {
		return err
	}
	return uplink.AwaitUp(ctx, index)
}

func (h *host) Solicit(link string) error {
	index, err := h.Index(link)
	if err != nil {
		return err
	}
	return uplink.Solicit(index)
}

func (h *host) AwaitNeighbour(ctx context.Context, link string, ip netip.Addr) error {
	index, err := h.Index(link)
	if err != nil {
		return err
	}
	return uplink.AwaitNeighbour(ctx, index, ip)
}

func (h *host) Uptime() time.Duration { return uplink.Uptime() }
