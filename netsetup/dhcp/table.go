package dhcp

import (
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// The methods of this file are what the protocol does to the table.

// isPort tells the MAC of one of the network's own ports.
func (l *Leases) isPort(m mac) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.byMAC[m]
	return e != nil && e.port
}

// portOf is the MAC of the port that has an address, or zero.
func (l *Leases) portOf(ip netip.Addr) mac {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.byIP[ip]; e != nil && e.port {
		return e.MAC
	}
	return zeroMAC
}

// hostname is the name that the network gave to a port, or "".
func (l *Leases) hostname(m mac) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.byMAC[m]; e != nil && e.port {
		return e.Hostname
	}
	return ""
}

// offer finds an address for m, the wanted one if it may have it, and keeps it
// for offerTime. It is not ok if the pool is exhausted.
func (l *Leases) offer(m mac, wanted netip.Addr, hostname string) (ip netip.Addr, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.opts.Now()
	e := l.byMAC[m]
	if e == nil || !e.port && !l.opts.Pool.has(e.IP) {
		if ip, ok = l.choose(m, wanted, now); !ok {
			return ip, false
		}
		l.remove(e)
		e = &lease{MAC: m, IP: ip}
		l.insert(e)
	}
	if !e.port {
		e.Hostname, e.Used = hostname, now
		e.offerEnd = now.Add(offerTime)
	}
	e.begun = false // it starts over, though perhaps with the number that it always has
	return e.IP, true
}

// bind gives ip to m until now+d. It is not ok if ip is not m's to have: another
// address is kept for m, or somebody else has this one. An unknown address is
// granted where it is free, since the client of a server whose file was lost has
// every right to go on with it.
func (l *Leases) bind(m mac, ip netip.Addr, hostname string, d time.Duration) (ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.opts.Now()
	e := l.byMAC[m]
	if e == nil || e.IP != ip {
		if e != nil && e.held(now) || !l.opts.Pool.has(ip) || l.byIP[ip] != nil {
			return false
		}
		l.remove(e)
		e = &lease{MAC: m, IP: ip}
		l.insert(e)
	}
	if !e.port && !l.opts.Pool.has(ip) {
		return false
	}
	if !e.port {
		e.Hostname = hostname
		if !e.Expiry.After(now) {
			e.Since = now
		}
	}
	e.offerEnd, e.Used, e.Expiry = time.Time{}, now, now.Add(d)
	l.save(e)
	return true
}

// begin notes the transaction in which m was given what it has, and tells whether
// that is another one than before: a client repeats a request whose answer is late
// (RFC 2131, section 4.1).
func (l *Leases) begin(m mac, transaction dhcpv4.TransactionID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.byMAC[m]
	if e == nil || e.begun && e.transaction == transaction {
		return false
	}
	e.begun, e.transaction = true, transaction
	return true
}

// withdraw takes an offer back: the client took another server's.
func (l *Leases) withdraw(m mac) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.byMAC[m]; e != nil {
		e.offerEnd, l.fullUntil = time.Time{}, time.Time{}
	}
}

// release ends m's lease of ip; it stays remembered, and a port's stays the
// port's.
func (l *Leases) release(m mac, ip netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.byMAC[m]; e != nil && e.IP == ip {
		e.offerEnd, e.Used, e.Expiry = time.Time{}, l.opts.Now(), time.Time{}
		l.fullUntil = time.Time{}
		l.save(e)
	}
}

// decline bars an address that somebody else was found to use. A reservation is
// kept nevertheless: the port's address was already told to others.
func (l *Leases) decline(m mac, ip netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.byMAC[m]
	if e == nil || e.IP != ip {
		return
	}
	l.log.warn("address is in use by an unknown machine", "ip", ip, "declined by", e.title())
	if e.port {
		e.Expiry = time.Time{}
		return
	}
	l.remove(e)
	now := l.opts.Now()
	l.insert(&lease{IP: ip, Used: now, Expiry: now.Add(declineTime)})
}

// choose finds an address for a MAC that has none: the wanted one, the preferred
// one, the next free one, the one that was unused for longest.
func (l *Leases) choose(m mac, wanted netip.Addr, now time.Time) (netip.Addr, bool) {
	pool := l.opts.Pool
	if pool.has(wanted) && l.byIP[wanted] == nil {
		return wanted, true
	}
	preferred := pool.Preferred(net.HardwareAddr(m[:]))
	if l.full || !preferred.IsValid() {
		return l.recycle(now)
	}
	start := pool.index(preferred)
	for i := range pool.size() {
		if ip := pool.at(start + i); l.byIP[ip] == nil && pool.has(ip) {
			return ip, true
		}
	}
	l.full = true
	return l.recycle(now)
}

// recycle takes the longest unused of the pool's remembered addresses. Finding
// none is remembered too, until one's time runs out: a flood of requests must
// not cost a look at the whole table each.
func (l *Leases) recycle(now time.Time) (netip.Addr, bool) {
	if now.Before(l.fullUntil) {
		return netip.Addr{}, false
	}
	var oldest *lease
	next := now.Add(declineTime)
	for _, e := range l.byIP {
		switch {
		case !l.opts.Pool.has(e.IP) || e.port:
		case e.held(now):
			if e.end().Before(next) {
				next = e.end()
			}
		case oldest == nil || e.recycledBefore(oldest):
			oldest = e
		}
	}
	if oldest == nil {
		l.fullUntil = next
		return netip.Addr{}, false
	}
	l.remove(oldest)
	return oldest.IP, true
}

// insert adds e, which replaces nothing in a table in use; of a file's lines the
// later one counts.
func (l *Leases) insert(e *lease) {
	if e.MAC != zeroMAC {
		l.remove(l.byMAC[e.MAC])
		l.byMAC[e.MAC] = e
	}
	if old := l.byIP[e.IP]; old != nil {
		l.remove(old)
	}
	l.byIP[e.IP] = e
}

// remove forgets e, which may be nil.
func (l *Leases) remove(e *lease) {
	if e == nil {
		return
	}
	if l.byMAC[e.MAC] == e {
		delete(l.byMAC, e.MAC)
	}
	if l.byIP[e.IP] == e {
		delete(l.byIP, e.IP)
	}
	l.full, l.fullUntil = false, time.Time{}
}

// save appends e to the file. A full disk must not cut guests off, so the fault
// is only told.
func (l *Leases) save(e *lease) {
	if l.store == nil {
		return
	}
	if err := l.store.append(e, l.byMAC); err != nil {
		l.log.warn("leases are not saved", "err", err)
	}
}
