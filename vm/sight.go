package vm

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/vmrun/vmrun/netsetup"
	"github.com/vmrun/vmrun/netsetup/dhcp"
)

// watchFunc begins to watch a TAP. The returned function waits until a guest is
// seen to use an address there, and counts what it says about that with a DHCP
// server; it has to be called, and ends with its context.
type watchFunc func(tap string, mac netsetup.MAC, heard *hearing) (wait func(context.Context) (netip.Addr, error), err error)

func watchTAP(tap string, mac netsetup.MAC, heard *hearing) (func(context.Context) (netip.Addr, error), error) {
	link, err := dhcp.ListenGuest(tap, mac.HardwareAddr())
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) (netip.Addr, error) {
		defer link.Close()
		return dhcp.Sight(ctx, heardLink{link, heard}, mac.HardwareAddr())
	}, nil
}

// hearing counts DHCP's messages between a guest and the bridge, whose rules may
// drop them.
type hearing struct {
	asked     atomic.Int64
	delivered atomic.Int64 // answers that came through to the guest
}

// heardLink counts what goes by on its way to the reader.
type heardLink struct {
	dhcp.Link
	heard *hearing
}

func (h heardLink) Read(p []byte) (int, error) {
	n, err := h.Link.Read(p)
	switch {
	case err != nil:
	case dhcp.Asks(p[:n]):
		h.heard.asked.Add(1)
	case dhcp.Answers(p[:n]):
		h.heard.delivered.Add(1)
	}
	return n, err
}

// watchNICs watches for the guest's addresses from before it begins until the
// machine is undone.
func (l *launch) watchNICs() {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	l.undo.push(func() error {
		cancel()
		all.Wait()
		return nil
	})
	for i, p := range l.ports {
		if p == nil {
			l.instance.sightings.set(i, sighting{err: fmt.Errorf("network %s is in mode user, where only the guest knows its address", l.plan.NICs[i].Network)})
			continue
		}
		wait, err := l.instance.watchLink(p.Link(), l.plan.NICs[i].MAC, &l.instance.hearings[i])
		if err != nil {
			l.instance.sightings.set(i, sighting{err: err})
			continue
		}
		all.Go(func() {
			if addr, err := wait(ctx); ctx.Err() == nil {
				l.instance.sight(i, sighting{addr: addr, err: err})
			}
		})
	}
}

// sight notes what became known of a NIC.
func (i *Instance) sight(nic int, s sighting) {
	i.sightings.set(nic, s)
	network := i.plan.NICs[nic].Network
	if s.err != nil {
		i.log.Debug("the guest's address is not seen", "network", network, "nic", nic, "cause", s.err)
		return
	}
	i.log.Debug("the guest has an address", "network", network, "nic", nic, "ip", s.addr)
	i.note(func(state *State) { state.NICs[nic].Seen = s.addr })
}

// AwaitAddress waits until a NIC's guest is seen to use an IPv4 address, which
// it returns. An error tells why that can't be seen, or is the context's.
func (i *Instance) AwaitAddress(ctx context.Context, nic int) (netip.Addr, error) {
	return i.sightings.await(ctx, nic)
}

// sightings are the addresses that a machine's guest was seen to use.
type sightings struct {
	mu      sync.Mutex
	changed chan struct{} // closed at the next change
	nics    []sighting
}

// sighting is what is known of one NIC.
type sighting struct {
	addr netip.Addr
	err  error // why there will be none
}

func newSightings(n int) *sightings {
	return &sightings{changed: make(chan struct{}), nics: make([]sighting, n)}
}

func (s *sightings) set(nic int, to sighting) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nics[nic] = to
	close(s.changed)
	s.changed = make(chan struct{})
}

// get returns what is known of a NIC, and a channel that is closed when more is.
func (s *sightings) get(nic int) (sighting, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nics[nic], s.changed
}

// await waits until a NIC's address was seen, or can't be.
func (s *sightings) await(ctx context.Context, nic int) (netip.Addr, error) {
	for {
		known, changed := s.get(nic)
		if known.addr.IsValid() || known.err != nil {
			return known.addr, known.err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return netip.Addr{}, context.Cause(ctx)
		}
	}
}
