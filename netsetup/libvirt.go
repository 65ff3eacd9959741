package netsetup

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/vmrun/vmrun/netsetup/libvirt"
)

// libvirtd is what netsetup asks of libvirt: a libvirt.Daemon, or in tests
// another. Networks that are gone are libvirt.ErrGone, a daemon that does not
// run libvirt.ErrAbsent.
type libvirtd interface {
	Networks(context.Context) ([]libvirt.Network, error)
	Start(ctx context.Context, uuid string) (started bool, err error)
	Stop(ctx context.Context, uuid string) error
	Lease(ctx context.Context, uuid string, mac net.HardwareAddr) (libvirt.Lease, error)
}

// A question to libvirt takes milliseconds, and a network's start or stop half a
// second. These are the bounds for a daemon that hangs.
const (
	libvirtQuestion = 2 * time.Second
	libvirtChange   = 20 * time.Second
)

// readLibvirt asks for libvirt's networks.
func readLibvirt(k kernel) ([]libvirt.Network, error) {
	ctx, cancel := context.WithTimeout(context.Background(), libvirtQuestion)
	defer cancel()
	return k.Libvirt().Networks(ctx)
}

// warnLibvirt tells whoever looks for the cause of a collision that libvirt did
// not say what its networks are.
func (k *keeper) warnLibvirt(err error) {
	if ignoreAbsent(err) != nil {
		k.log.Warn("libvirt's networks are not known, and their ranges may be taken", "cause", err)
	}
}

// joinLibvirt finds the network of libvirt's and checks its bridge, which is not
// there yet where the network is not active.
func (r *Resolved) joinLibvirt(f Facts) error {
	if f.NoLibvirt != nil {
		return &MissingError{Feature: "libvirt", Reason: f.NoLibvirt.Error()}
	}
	n, ok := f.libvirtNetwork(r.Spec.Libvirt)
	switch {
	case !ok:
		return conflict("libvirt", "there is no network %q; libvirt has %s", r.Spec.Libvirt, f.libvirtNames())
	case n.Bridge == "":
		return conflict("libvirt", "network %q is of mode %q, which has no bridge to join", n.Name, n.Mode)
	}
	r.LibvirtUUID = n.UUID
	if n.Active {
		return r.joinBridge("libvirt", n.Bridge, f)
	}
	if n.MTU == 0 {
		n.MTU = 1500
	}
	if r.MTU != 0 && r.MTU != n.MTU {
		return conflict("mtu", "libvirt's network %q has %d bytes, and a bridge that is joined stays as it is", n.Name, n.MTU)
	}
	r.Link, r.MTU = n.Bridge, n.MTU
	return nil
}

func (f Facts) libvirtNetwork(name string) (libvirt.Network, bool) {
	i := slices.IndexFunc(f.Libvirt, func(n libvirt.Network) bool { return n.Name == name })
	if i < 0 {
		return libvirt.Network{}, false
	}
	return f.Libvirt[i], true
}

func (f Facts) libvirtNames() string {
	var names []string
	for _, n := range f.Libvirt {
		names = append(names, n.Name)
	}
	if len(names) == 0 {
		return "none"
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

func libvirtSteps(r Resolved, n names, f Facts) []step {
	network, _ := f.libvirtNetwork(r.Spec.Libvirt)
	return []step{{
		joinLibvirt{Name: network.Name, UUID: network.UUID, Bridge: network.Bridge, Active: network.Active},
		leaveLibvirt{Name: network.Name, UUID: network.UUID, Bridge: network.Bridge, Group: n.group},
	}}
}

// joinLibvirt claims a network of libvirt's, starting it where it is not active.
type joinLibvirt struct {
	Name, UUID, Bridge string
	Active             bool // when the plan was made
}

func (o joinLibvirt) String() string {
	if o.Active {
		return fmt.Sprintf("join libvirt's network %s, which is active, by bridge %s", o.Name, o.Bridge)
	}
	return fmt.Sprintf("start libvirt's network %s and join it by bridge %s", o.Name, o.Bridge)
}

func (o joinLibvirt) do(w *effects) error { return w.claims.joinLibvirt(w.kernel, o) }

// leaveLibvirt gives a network of libvirt's up. The last one stops it if we
// started it and nobody else has come to use it.
type leaveLibvirt struct {
	Name   string `json:"name"`
	UUID   string `json:"uuid"`
	Bridge string `json:"bridge"`
	Group  uint32 `json:"group"` // of our own ports
}

func (o leaveLibvirt) kind() string { return "leave-libvirt" }

func (o leaveLibvirt) String() string {
	return fmt.Sprintf("stop libvirt's network %s, if vmrun started it and nobody else uses it", o.Name)
}

func (o leaveLibvirt) do(w *effects) error {
	_, err := w.claims.leaveLibvirt(w.kernel, o)
	return err
}

// Pauses between questions for a guest's lease: libvirt has no event for it.
// They grow, since a guest that takes long may never ask for one.
const (
	firstLeasePause = 250 * time.Millisecond
	lastLeasePause  = 10 * time.Second
)

// leaseOf is the lease that a guest has from before, by which a new one is told
// from it; none on networks that are not libvirt's.
func (k *keeper) leaseOf(h *holding) libvirt.Lease {
	if k.network.LibvirtUUID == "" {
		return libvirt.Lease{}
	}
	lease, err := k.askLease(context.Background(), h)
	if err != nil {
		k.log.Warn("ask for leases", "cause", err)
	}
	return lease
}

func (k *keeper) askLease(ctx context.Context, h *holding) (libvirt.Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, libvirtQuestion)
	defer cancel()
	return k.w.kernel.Libvirt().Lease(ctx, k.network.LibvirtUUID, h.Spec.MAC.HardwareAddr())
}

// isGuests tells whether a lease is the present guest's. One that was known before
// it came is not yet, unless it never ends.
func isGuests(known, now libvirt.Lease) bool {
	return now.IP.IsValid() && (now != known || now.Expires.IsZero())
}

// followLease looks for the address that libvirt gives to a port's guest and
// tells the member.
func (s *services) followLease(k *keeper, h *holding, known libvirt.Lease) {
	if s.network.LibvirtUUID == "" {
		return
	}
	go func() { // close does not wait for it, who waits for the keeper's lock
		for pause := firstLeasePause; k.holds(h); pause = min(pause*5/4, lastLeasePause) {
			select {
			case <-time.After(pause):
			case <-s.ctx.Done():
				return
			}
			lease, err := k.askLease(s.ctx, h)
			if err != nil || !isGuests(known, lease) {
				continue // libvirtd may be started anew
			}
			k.tellAddress(h, lease)
			return
		}
	}()
}

// holds tells whether a port is still there.
func (k *keeper) holds(h *holding) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.ports[h.ID] == h
}

func (k *keeper) tellAddress(h *holding, lease libvirt.Lease) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ports[h.ID] != h {
		return
	}
	h.IP = lease.IP
	k.tellPort(Leased, h)
	k.log.Info("guest has an address of libvirt's", "vm", h.Spec.VM, "ip", lease.IP.String())
	if h.conn == nil {
		return // whoever comes back for the port is told then
	}
	h.conn.SetWriteDeadline(time.Now().Add(answerTimeout))
	if err := send(h.conn, reply{Protocol: protocolVersion, Address: lease.IP}, nil); err != nil {
		k.log.Warn("tell the guest's address", "vm", h.Spec.VM, "cause", err)
	}
}
