package dhcp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

const (
	offerTime   = 30 * time.Second // how long an offer waits for its request
	declineTime = 10 * time.Minute // how long a declined address is left alone
)

// Options tell what a lease table is made of.
type Options struct {
	Pool Pool
	Path string // file that keeps the leases, its folder made if need be; "": they are forgotten at Close
	Log  *slog.Logger
	Now  func() time.Time // nil: time.Now

	// InUse tells that machines have addresses already. They are not cut off because
	// of a file that can't be read or written: that is told in the log, and the table
	// is kept without it.
	InUse bool

	// Probe finds out who else has an address before a reservation takes it;
	// nil: the network is ours alone. It returns nil if nobody has it.
	Probe func(ctx context.Context, ip netip.Addr, mac net.HardwareAddr) (holder net.HardwareAddr, err error)
}

// Leases is the table of who has which address of one network. It is keyed by
// MAC alone, since cloned machines share a client id. Whoever had an address
// gets it again as long as nobody else needed it. It may be shared between
// goroutines.
type Leases struct {
	opts    Options
	reserve sync.Mutex // one Reserve at a time; taken before mu

	mu    sync.Mutex
	log   quiet
	store *store
	byMAC map[mac]*lease
	byIP  map[netip.Addr]*lease // also the declined addresses, which have no MAC
	ports map[string][]*lease   // reservations by name

	full      bool      // each address of the pool is in byIP
	fullUntil time.Time // and none of them can be recycled before
}

// lease is one address and its holder. It is held while its port is there, and
// until Expiry and offerEnd; after that it is remembered.
type lease struct {
	MAC      mac        `json:"mac"`
	IP       netip.Addr `json:"ip"`
	Hostname string     `json:"hostname,omitempty"`
	Since    time.Time  `json:"since,omitzero"` // zero: it was never more than offered
	Used     time.Time  `json:"used"`
	Expiry   time.Time  `json:"expiry,omitzero"`

	port        bool
	offerEnd    time.Time
	begun       bool                 // it was given, since it was last offered,
	transaction dhcpv4.TransactionID // in this one
}

// OpenLeases reads the table from its file and opens it for writing. A torn or
// foreign file is put aside, with a line in the log.
func OpenLeases(opts Options) (*Leases, error) {
	if err := opts.Pool.check(); err != nil {
		return nil, fmt.Errorf("open leases: %w", err)
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	l := &Leases{
		opts:  opts,
		log:   newQuiet(opts.Log, opts.Now),
		byMAC: make(map[mac]*lease),
		byIP:  make(map[netip.Addr]*lease),
		ports: make(map[string][]*lease),
	}
	if opts.Path == "" {
		return l, nil
	}
	switch err := l.load(); {
	case err != nil && opts.InUse:
		l.log.warn("lease file can't be used, leases are kept in memory alone", "err", err)
	case err != nil:
		return nil, fmt.Errorf("open leases: %w", err)
	}
	return l, nil
}

// load fills the table from its file and begins to write that anew.
func (l *Leases) load() error {
	old, err := readStore(l.opts.Path, l.log)
	if err != nil {
		return err
	}
	for _, e := range old {
		if e.MAC.unicast() && l.opts.Pool.assignable(e.IP) {
			l.insert(&e)
		}
	}
	l.store, err = createStore(l.opts.Path, l.byMAC)
	return err
}

// Close writes the table out. The Leases must not be used after it.
func (l *Leases) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.store == nil {
		return nil
	}
	store := l.store
	l.store = nil
	if err := store.close(l.byMAC); err != nil {
		return fmt.Errorf("close leases: %w", err)
	}
	return nil
}

// Claim is a port's wish for an address.
type Claim struct {
	MAC      net.HardwareAddr
	IP       netip.Addr // zero: the one it had before, else any of the pool
	Hostname string     // a DNS label; "": none
	Held     bool       // the machine has IP already: the network is not asked who else has it
}

// Reserve decides the address of a port and keeps it until Release: the DHCP
// server gives that MAC this address and no other, and nobody else gets it. A
// fixed address may lie outside the pool; it is refused if another machine has
// it, and the error names that machine.
func (l *Leases) Reserve(ctx context.Context, c Claim) (netip.Addr, error) {
	l.reserve.Lock()
	defer l.reserve.Unlock()
	m, err := parseMAC(c.MAC)
	if err == nil && !m.unicast() {
		err = errors.New("not the address of one machine")
	}
	if err != nil {
		return netip.Addr{}, fmt.Errorf("reserve address for %s: %w", c.MAC, err)
	}
	// Each round that finds its address taken bars it for declineTime: there
	// are never more rounds than addresses.
	for {
		ip, err := l.place(m, c)
		if err != nil {
			return netip.Addr{}, fmt.Errorf("reserve address for %s: %w", m, err)
		}
		holder, err := l.probe(ctx, ip, c)
		switch {
		case err != nil:
			l.unplace(m)
			return netip.Addr{}, fmt.Errorf("reserve address for %s: probe %s: %w", m, ip, err)
		case holder == nil:
			l.settle(m)
			return ip, nil
		case c.IP.IsValid():
			l.unplace(m)
			return netip.Addr{}, fmt.Errorf("reserve %s for %s: in use by %s outside this host", ip, m, holder)
		}
		l.unplace(m)
		l.decline(m, ip)
	}
}

func (l *Leases) probe(ctx context.Context, ip netip.Addr, c Claim) (net.HardwareAddr, error) {
	if l.opts.Probe == nil || c.Held {
		return nil, nil
	}
	return l.opts.Probe(ctx, ip, c.MAC)
}

// place makes m's entry a port's, at the address that the claim leads to.
func (l *Leases) place(m mac, c Claim) (netip.Addr, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.opts.Now()
	e := l.byMAC[m]
	if e != nil && e.port {
		return netip.Addr{}, fmt.Errorf("already on the network as %s", e.title())
	}
	ip := c.IP
	switch {
	case ip.IsValid():
		if err := l.vacate(ip, m, now); err != nil {
			return netip.Addr{}, err
		}
	case e != nil && l.opts.Pool.has(e.IP):
		ip = e.IP
	default:
		var ok bool
		if ip, ok = l.choose(m, netip.Addr{}, now); !ok {
			return netip.Addr{}, fmt.Errorf("no address is free from %s to %s", l.opts.Pool.First, l.opts.Pool.Last)
		}
	}
	if e == nil || e.IP != ip {
		l.remove(e)
		e = &lease{MAC: m, IP: ip}
		l.insert(e)
	}
	if !e.Expiry.After(now) {
		e.Since = now
	}
	e.port, e.Used, e.Hostname, e.offerEnd = true, now, c.Hostname, time.Time{}
	if name := strings.ToLower(e.Hostname); name != "" {
		l.ports[name] = append(l.ports[name], e)
	}
	return ip, nil
}

// vacate makes a fixed address free for m, or says why it can't.
func (l *Leases) vacate(ip netip.Addr, m mac, now time.Time) error {
	if !l.opts.Pool.assignable(ip) {
		return fmt.Errorf("address %s: not for a guest of %s", ip, l.opts.Pool.Subnet)
	}
	e := l.byIP[ip]
	if e == nil || e.MAC == m {
		return nil
	}
	if e.MAC != zeroMAC && e.held(now) {
		return fmt.Errorf("address %s: in use by %s", ip, e.title())
	}
	l.remove(e)
	return nil
}

func (l *Leases) unplace(m mac) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.free(l.byMAC[m])
}

func (l *Leases) settle(m mac) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.save(l.byMAC[m])
}

// Release ends a reservation: its port has left the network. The address stays
// remembered, so that the next Reserve of the MAC finds it again. Releasing what
// isn't reserved does nothing.
func (l *Leases) Release(hw net.HardwareAddr) {
	m, err := parseMAC(hw)
	if err != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.byMAC[m]; l.free(e) {
		e.Used, e.Expiry = l.opts.Now(), time.Time{}
		l.save(e)
	}
}

// free takes the port from an entry, and tells whether it had one.
func (l *Leases) free(e *lease) bool {
	if e == nil || !e.port {
		return false
	}
	e.port = false
	name := strings.ToLower(e.Hostname)
	l.ports[name] = slices.DeleteFunc(l.ports[name], func(p *lease) bool { return p == e })
	if len(l.ports[name]) == 0 {
		delete(l.ports, name)
	}
	l.fullUntil = time.Time{}
	return true
}

// Lookup gives the addresses of the ports of a name, in any letter case. Only
// reservations have names here: a name that a guest gives itself could be
// another's.
func (l *Leases) Lookup(name string) []netip.Addr {
	l.mu.Lock()
	defer l.mu.Unlock()
	var ips []netip.Addr
	for _, e := range l.ports[strings.ToLower(name)] {
		ips = append(ips, e.IP)
	}
	slices.SortFunc(ips, netip.Addr.Compare)
	return ips
}

// Name is the hostname of the port that has an address, or "".
func (l *Leases) Name(ip netip.Addr) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.byIP[ip]; e != nil && e.port {
		return e.Hostname
	}
	return ""
}

// Bound tells whether a port has taken the address that is reserved for it.
func (l *Leases) Bound(port net.HardwareAddr) bool {
	m, err := parseMAC(port)
	if err != nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.byMAC[m]
	return e != nil && e.port && e.state(l.opts.Now()) == Bound
}

// State is what a lease is at a moment.
type State string

// The states. A reserved address is a port's that has not asked for it yet.
const (
	Reserved   State = "reserved"
	Offered    State = "offered"
	Bound      State = "bound"
	Remembered State = "remembered"
	Declined   State = "declined"
)

// Lease is one line of List.
type Lease struct {
	IP       netip.Addr `json:"ip"`
	MAC      string     `json:"mac,omitempty"` // "": declined, the address is some unknown machine's
	Hostname string     `json:"hostname,omitempty"`
	State    State      `json:"state"`
	Port     bool       `json:"port"`            // one of the network's ports; else a stranger's
	Expiry   time.Time  `json:"expiry,omitzero"` // zero: none runs
	Since    time.Time  `json:"since,omitzero"`  // when the present binding or reservation began
}

// List is a copy of the table, by address.
func (l *Leases) List() []Lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.opts.Now()
	list := make([]Lease, 0, len(l.byIP))
	for _, e := range l.byIP {
		out := Lease{IP: e.IP, Hostname: e.Hostname, State: e.state(now), Port: e.port, Since: e.Since}
		if e.MAC != zeroMAC {
			out.MAC = e.MAC.String()
		}
		if e.Expiry.After(now) {
			out.Expiry = e.Expiry
		}
		list = append(list, out)
	}
	slices.SortFunc(list, func(a, b Lease) int { return a.IP.Compare(b.IP) })
	return list
}

func (e *lease) held(now time.Time) bool { return e.port || e.end().After(now) }

// end is when the last of e's times runs out.
func (e *lease) end() time.Time {
	if e.offerEnd.After(e.Expiry) {
		return e.offerEnd
	}
	return e.Expiry
}

// title is the holder for people.
func (e *lease) title() string {
	if e.Hostname == "" {
		return e.MAC.String()
	}
	return fmt.Sprintf("%s (%s)", e.Hostname, e.MAC)
}

func (e *lease) state(now time.Time) State {
	switch {
	case e.MAC == zeroMAC && e.Expiry.After(now):
		return Declined
	case e.Expiry.After(now):
		return Bound
	case e.port:
		return Reserved
	case e.offerEnd.After(now):
		return Offered
	}
	return Remembered
}

// recycledBefore orders entries by how little is lost with them: those that were
// only offered, then the longest unused.
func (e *lease) recycledBefore(other *lease) bool {
	if a, b := e.Since.IsZero(), other.Since.IsZero(); a != b {
		return a
	}
	return e.Used.Before(other.Used)
}
