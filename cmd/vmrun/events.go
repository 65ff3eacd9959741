package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmrun/vmrun/netsetup"
	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/control"
)

const eventsHelp = `Print what happens to VMs and to the networks that they are on, as it happens, a
JSON object on each line: time; vm; source, which is qmp, network or vmrun; event;
data. With names it ends when these VMs have ended; without, it goes on with VMs
that start later, until it is interrupted.

Events of qmp have QEMU's names. Of vmrun: STARTED, of a VM that started meanwhile;
ATTACHED and DETACHED, a disk or a card came or went; ENDED; MISSED, this program was
too slow. Of a network: JOINED and LEFT, a NIC came or went; LEASED, a guest was given
an address; ADDRESS, it was seen to use one; RESTORED and MENDED, what somebody took
away is back; BROKEN, its bridge is gone; KEEPER_GONE and ADOPTED; DOWN; MISSED; NOTE
and TROUBLE, what the VM's supervisor says. Where vm is empty it is about the network
as a whole. What happened right before a network was heard of, such as the JOINED of a
VM that is its first, comes late: order by time.`

func newEventsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "events [VM…]",
		Short: "Print what happens to VMs and their networks, as JSON lines",
		Long:  eventsHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			stderr := &lineWriter{w: cmd.ErrOrStderr()}
			p, err := newEventPrinter(cmd.OutOrStdout(), styleOf(cmd.Context()).messages(stderr, false))
			if err != nil {
				return err
			}
			if len(args) == 0 {
				return p.all(cmd.Context())
			}
			return p.some(cmd.Context(), args)
		},
		ValidArgsFunction: completeVMs(vm.Machine.Alive),
	}
}

// eventPrinter prints events of VMs, and of each network that one of them is on,
// once for all of them.
type eventPrinter struct {
	host  vm.Host
	out   *json.Encoder
	log   *slog.Logger
	names []string  // of the VMs; nil: all
	began time.Time // what happens to them from then on is told, also on a network that is heard of later

	mu       sync.Mutex
	followed map[string]bool // by ID; true: to be followed again once it is down
	networks sync.WaitGroup
}

func newEventPrinter(w io.Writer, log *slog.Logger) (*eventPrinter, error) {
	host, err := locateHost()
	return &eventPrinter{host: host, out: json.NewEncoder(&syncWriter{w: w}), log: log, began: time.Now(), followed: map[string]bool{}}, err
}

// some prints until the VMs of the names have ended.
func (p *eventPrinter) some(ctx context.Context, names []string) error {
	machines, err := chosenVMs(ctx, names, false)
	if err != nil {
		return err
	}
	for _, m := range machines {
		if err := living(m, "listen to"); err != nil {
			return err
		}
	}
	p.names = names
	following, stop := context.WithCancel(ctx)
	defer p.networks.Wait() // what happened so far
	defer stop()
	return each(machines, func(_ int, m vm.Machine) error {
		if err := p.listen(ctx, following, m, false); err != nil {
			return fmt.Errorf("listen to %s: %w", m.Name, err)
		}
		return nil
	})
}

// all prints until ctx ends, or nobody reads it.
func (p *eventPrinter) all(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer p.networks.Wait()
	defer stop(nil)
	var listening sync.WaitGroup
	defer listening.Wait()
	late := false
	err := vm.Arrivals(ctx, p.host, func() { late = true }, func(m vm.Machine) {
		late := late
		listening.Go(func() {
			switch err := p.listen(ctx, ctx, m, late); {
			case errors.As(err, new(unwritten)):
				stop(err)
			case err != nil && !late:
				p.log.Warn("listen to "+m.Name, "cause", err)
			}
			// One that came and went was a launch that failed, which its run tells.
		})
	})
	if cause := context.Cause(ctx); errors.As(cause, new(unwritten)) {
		return cause
	}
	return err
}

// unwritten says that an event could not be printed.
type unwritten struct{ error }

func (e unwritten) Unwrap() error { return e.error }

func (p *eventPrinter) print(e control.Event) error {
	if err := p.out.Encode(e); err != nil {
		return unwritten{err}
	}
	return nil
}

// listen prints a VM's events until its end, and those of its networks until
// following ends. It says that a late one has started.
func (p *eventPrinter) listen(ctx, following context.Context, m vm.Machine, late bool) error {
	return control.Listen(ctx, m, func() {
		if late {
			_ = p.print(control.Event{Time: time.Now().Round(0), VM: m.Name, Source: "vmrun", Event: "STARTED"}) // the next one fails as well
		}
		p.followNetworks(following, m.Name)
	}, func(e control.Event) error {
		err := p.print(e)
		if e.Source == "vmrun" && (e.Event == control.EventAttached || e.Event == control.EventMissed) {
			p.followNetworks(following, m.Name)
		}
		return err
	})
}

// followNetworks prints events of the networks that a VM has cards on at present.
func (p *eventPrinter) followNetworks(ctx context.Context, name string) {
	m, err := vm.Open(ctx, p.host, name)
	if err != nil {
		return // it has just ended
	}
	for _, spec := range m.Networks() {
		p.follow(ctx, spec)
	}
}

// follow prints a network's events until it is down, unless that is being done. One
// that somebody asks for meanwhile may have gone down and come up again, and is
// followed again.
func (p *eventPrinter) follow(ctx context.Context, spec netsetup.Spec) {
	key := spec.ID()
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, followed := p.followed[key]; followed {
		p.followed[key] = true
		return
	}
	p.followed[key] = false
	p.networks.Go(func() {
		for again := true; again && ctx.Err() == nil; again = p.isWanted(key) {
			p.printNetwork(ctx, spec)
		}
	})
}

// isWanted tells whether somebody has asked for a network since it was last
// followed. One that nobody asked for is not followed any more.
func (p *eventPrinter) isWanted(key string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	wanted := p.followed[key]
	p.followed[key] = false
	if !wanted {
		delete(p.followed, key)
	}
	return wanted
}

// printNetwork prints a network's events until it is down, or ctx ends. Of those from
// before it was heard of it prints what is about the VMs.
func (p *eventPrinter) printNetwork(ctx context.Context, spec netsetup.Spec) {
	heard := time.Now()
	err := netsetup.Follow(ctx, networkHost(p.host), spec, netsetup.FollowOptions{Since: p.began}, func(e netsetup.Event) error {
		if e.Time.Before(heard) && p.names != nil && !slices.Contains(p.names, e.VM) {
			return nil
		}
		data, err := json.Marshal(e.Data)
		if err != nil {
			return err
		}
		return p.print(control.Event{Time: e.Time, VM: e.VM, Source: "network", Event: string(e.Kind), Data: data})
	})
	if err != nil && !errors.As(err, new(unwritten)) && !errors.As(err, new(*netsetup.NotFoundError)) {
		p.log.Warn("what happens to a network is not told", "cause", err)
	}
}
