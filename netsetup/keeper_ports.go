package netsetup

import (
	"context"
	"errors"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/vmrun/vmrun/netsetup/libvirt"
)

// newPort opens a TAP for a member and puts it on the bridge.
func (k *keeper) newPort(conn *net.UnixConn, who peer, r attachRequest) (*attachment, []*os.File, error) {
	if err := k.checkBridge(); err != nil {
		return nil, nil, err
	}
	if err := k.checkPort(r.Port); err != nil {
		return nil, nil, err
	}
	if !who.trusted() {
		if k.hasLost() {
			return nil, nil, errors.New("the network's keeper has died, and awaits members from before: try again in a moment")
		}
		if err := k.checkGuest(r.Port, who.uid); err != nil {
			return nil, nil, err
		}
	}
	ip, err := k.services.reserve(r.Port, false)
	if err != nil {
		return nil, nil, conflict("ip", "%v", err)
	}
	h := &holding{conn: conn, pid: who.pid, portRecord: portRecord{ID: r.ID, UID: who.uid, Spec: r.Port,
		Link: k.names.tap(r.Port), IP: ip, Since: time.Now().UTC()}}
	known := k.leaseOf(h)
	files, err := k.openPort(h)
	if err != nil {
		k.services.release(r.Port.MAC)
		return nil, nil, err
	}
	k.ports[r.ID] = h
	k.services.followLease(k, h, known)
	k.tellPort(Joined, h)
	k.log.Info("member joins", "vm", r.Port.VM, "link", h.Link, "mac", r.Port.MAC.String(), "ip", ip.String(), "members", len(k.ports))
	return k.describe(h), files, nil
}

func (k *keeper) checkPort(p PortSpec) error {
	if p.MAC == k.names.bridgeMAC() {
		return conflict("mac", "%s is the network's own", p.MAC)
	}
	for _, h := range k.ports {
		switch {
		case h.Spec.VM == p.VM && h.Spec.NIC == p.NIC:
			return conflict("name", "a VM %s is on the network already (NIC %d)", p.VM, p.NIC)
		case h.Link == k.names.tap(p):
			return conflict("name", "VM %s would have the same interface as VM %s (%s)", p.VM, h.Spec.VM, h.Link)
		case h.Spec.MAC == p.MAC:
			return conflict("mac", "%s is on the network already, as NIC %d of VM %s", p.MAC, h.Spec.NIC, h.Spec.VM)
		case p.IP.IsValid() && h.IP == p.IP:
			return conflict("ip", "%s is in use by VM %s", p.IP, h.Spec.VM)
		}
	}
	return nil
}

// openPort journals the port and does its steps; on failure nothing is left.
func (k *keeper) openPort(h *holding) ([]*os.File, error) {
	steps := planPort(k.network, k.names, h.Spec)
	seq, err := k.journal.recordPort(steps[0].undo, &h.portRecord)
	if err != nil {
		return nil, err
	}
	h.seq = seq
	steps[0].undo = nil // journalled just now, with the port
	w := &effects{kernel: k.w.kernel, claims: k.w.claims}
	if err := apply(w, k.journal, steps); err != nil {
		return nil, errors.Join(err, closeAll(w.files), k.journal.undoEntry(k.w, seq))
	}
	return w.files, nil
}

func (k *keeper) describe(h *holding) *attachment {
	return &attachment{Link: h.Link, Bridge: k.network.Link, IP: h.IP, Subnet: k.network.Subnet,
		Gateway: k.network.Gateway, MTU: k.network.MTU, Members: len(k.ports)}
}

// resumePort gives a port back to the member that says its id, if that is the same
// user and the TAP is still there. Else the port is taken away, and with the
// last one the network.
func (k *keeper) resumePort(conn *net.UnixConn, who peer, r attachRequest) reply {
	h := k.ports[r.ID]
	if h == nil && k.hasLost() && who.trusted() {
		h = k.regain(who, r)
	}
	switch {
	case h == nil:
		return reply{Detached: &detachResult{Last: k.idle()}}
	case h.UID != who.uid:
		return reply{Refused: &refusal{Text: "the port is another user's"}}
	case !k.linkExists(h.Link):
		result := k.removePort(h)
		return reply{Detached: &result}
	}
	h.conn, h.pid = conn, who.pid
	k.log.Info("member is back", "vm", h.Spec.VM, "link", h.Link)
	info := k.describe(h)
	return reply{Attached: info}
}

// regain notes again what a damaged journal knew of a port whose TAP is there, by
// what its member says; nil where there is none.
func (k *keeper) regain(who peer, r attachRequest) *holding {
	link := k.names.tap(r.Port)
	var lost *holding
	for _, h := range k.ports {
		if h.isLost() && h.Link == link {
			lost = h
		}
	}
	if lost == nil || r.check() != nil || k.network.Spec.unlike(r.Net) != nil {
		return nil
	}
	delete(k.ports, lost.ID)
	if err := k.checkPort(r.Port); err != nil { // somebody has come before it
		k.ports[lost.ID] = lost
		k.log.Warn("note a port that was lost", "vm", r.Port.VM, "cause", err)
		return nil
	}
	h := &holding{portRecord: portRecord{ID: r.ID, UID: who.uid, Spec: r.Port, Link: link, Since: lost.Since}}
	var err error
	if h.IP, err = k.services.reserve(r.Port, true); err != nil {
		k.log.Warn("keep address", "vm", r.Port.VM, "cause", err)
	}
	if h.seq, err = k.journal.recordPort(delLinks{Group: k.names.group, Names: []string{link}}, &h.portRecord); err == nil {
		err = k.journal.cross(lost.seq)
	} else {
		h.seq = lost.seq
	}
	if err != nil {
		k.log.Warn("note a port that was lost", "vm", r.Port.VM, "cause", err)
	}
	k.ports[h.ID] = h
	k.services.followLease(k, h, libvirt.Lease{})
	return h
}

// forget takes a port away whose member asks for it anew: the TAP was lost on
// the way.
func (k *keeper) forget(h *holding) {
	delete(k.ports, h.ID)
	k.tellPort(Left, h)
	k.services.release(h.Spec.MAC)
	k.remove(h)
}

// linkExists tells whether a port's TAP is there, which says that its VM is, or who
// supervises that; one that was made to outlive both says nothing.
func (k *keeper) linkExists(name string) bool {
	links, err := k.w.kernel.Links()
	return err != nil || slices.ContainsFunc(links, func(l Link) bool {
		return l.Name == name && l.Group == k.names.group && !l.Persistent
	})
}

// adopt takes over from a keeper that died. A port whose TAP is gone has no VM
// any more; where none is left, everything is undone and this keeper starts
// afresh.
func (k *keeper) adopt(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.journal.restore(k.host, k.w); err != nil {
		if _, specErr := loadSpec(filepath.Join(k.dir, specName)); specErr == nil {
			return err // members ask again; the dead-man knows what the host is to get back
		}
		k.log.Warn("can't tell all that is left of the last run", "cause", err) // what is in the way, the plan tells
	}
	if len(k.journal.entries) == 0 {
		return nil
	}
	if err := k.load(); err != nil {
		k.log.Warn("starting afresh", "cause", err)
		return k.startAfresh()
	}
	for _, e := range k.journal.ports() {
		if k.linkExists(e.Port.Link) {
			k.ports[e.Port.ID] = &holding{portRecord: *e.Port, seq: e.Seq}
		} else if err := k.journal.undoEntry(k.w, e.Seq); err != nil {
			k.log.Error("undo", "cause", err)
		}
	}
	if len(k.ports) == 0 {
		k.log.Info("nobody is left of the last run, starting afresh")
		k.adopted = nil
		return k.startAfresh()
	}
	if err := k.resume(ctx); err != nil {
		return err
	}
	k.phase = up
	if k.adopted != nil {
		k.watchGuests(ctx)
	}
	k.awaitHolder(ctx)
	k.awaitLost(ctx)
	k.log.Info("adopted", "network", k.network.Name, "ports", len(k.ports))
	return nil
}

// startAfresh undoes what is left of the last run. What can't be undone is told and
// stays noted, and is in the way of the next one only where its plan says so; but an
// uplink has to have back what it lent before it lends again.
func (k *keeper) startAfresh() error {
	err := k.journal.undo(k.w)
	if err != nil && !k.journal.lends() {
		k.log.Error("undo", "cause", err)
		return nil
	}
	return err
}

func (k *keeper) load() error {
	saved, err := loadSpec(filepath.Join(k.dir, specName))
	if err != nil {
		return err
	}
	id, err := instance(k.host.Runtime)
	if err != nil {
		return err
	}
	k.network, k.since, k.adopted = saved.Network, saved.Since, saved.Group
	k.names = newNames(id, saved.Network.Spec)
	return nil
}

// awaitHolder closes an adopted network to its group again unless the holder
// that opened it comes back.
func (k *keeper) awaitHolder(ctx context.Context) {
	if k.adopted == nil {
		return
	}
	late := time.AfterFunc(firstMemberTimeout, func() {
		k.enter()
		defer k.exit()
		if k.adopted != nil && k.phase == up {
			k.log.Warn("the holder did not come back: root's alone from now on")
			k.adopted = nil
			k.saveOpened()
		}
	})
	context.AfterFunc(ctx, func() { late.Stop() })
}

// awaitLost takes away lost ports whose members don't come back for them, such as
// those of users without root.
func (k *keeper) awaitLost(ctx context.Context) {
	if !k.hasLost() {
		return
	}
	late := time.AfterFunc(firstMemberTimeout, func() {
		k.enter()
		defer k.exit()
		for _, h := range slices.Collect(maps.Values(k.ports)) {
			if h.isLost() && k.ports[h.ID] == h && k.phase == up { // none is removed without a pause
				k.log.Warn("nobody came back for a port that the journal has lost", "link", h.Link)
				k.removePort(h)
			}
		}
	})
	context.AfterFunc(ctx, func() { late.Stop() })
}

func (k *keeper) hasLost() bool {
	for _, h := range k.ports {
		if h.isLost() {
			return true
		}
	}
	return false
}

// resume starts the services again and claims again what the dead keeper's
// locks have let go.
func (k *keeper) resume(ctx context.Context) error {
	if err := k.adoptRules(); err != nil {
		return err
	}
	if err := k.armAgain(); err != nil {
		k.log.Error("nobody stands behind this keeper", "cause", err)
	}
	services, err := openServices(k, k.network)
	if err != nil {
		return err
	}
	k.services = services
	if port := services.dnsPort(); port != k.network.DNSPort {
		k.log.Error("DNS is out of reach: its port was taken while no keeper ran", "port", k.network.DNSPort)
	}
	services.reserveAgain(k)
	for link := range k.forwarded() {
		if err := k.w.claims.forward(k.w.kernel, link); err != nil {
			k.log.Warn("claim forwarding", "link", link, "cause", err)
		}
	}
	if err := k.w.claims.rejoinLibvirt(k.network.LibvirtUUID); err != nil {
		k.log.Warn("claim libvirt network", "cause", err)
	}
	if err := errors.Join(k.noteBridge(), services.start(k)); err != nil {
		return err
	}
	services.follow(k)
	for _, h := range k.ports {
		services.followLease(k, h, libvirt.Lease{})
	}
	k.watchOrphans(ctx)
	return nil
}

// dropOrphans takes away ports whose TAP went while no member had them.
func (k *keeper) dropOrphans() {
	k.enter()
	defer k.exit()
	if k.phase != up {
		return
	}
	for _, h := range slices.Collect(maps.Values(k.ports)) {
		if h.conn == nil && k.phase == up && !k.linkExists(h.Link) {
			k.log.Info("port ended while nobody had it", "vm", h.Spec.VM, "link", h.Link)
			k.removePort(h)
		}
	}
}
