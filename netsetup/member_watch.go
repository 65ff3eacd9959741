package netsetup

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"
)

// watch holds the membership: when the keeper dies, the next one is asked to
// adopt the port.
func (p *Port) watch(ctx context.Context) {
	defer close(p.detached)
	for conn := p.conn; conn != nil; conn = p.rejoin(ctx) {
		if result := p.hear(conn); result != nil {
			p.detached <- *result
			return
		}
		conn.Close()
	}
}

// hear takes what the keeper tells until the port is detached; nil where the
// connection ended before.
func (p *Port) hear(conn *net.UnixConn) *detachResult {
	for {
		var answer reply
		files, err := receive(conn, &answer)
		closeAll(files)
		switch {
		case err != nil:
			return nil
		case answer.Detached != nil:
			return answer.Detached
		case answer.Address.IsValid():
			p.setIP(answer.Address)
		}
	}
}

// setIP notes the address that the guest has got from a DHCP server that is not
// ours.
func (p *Port) setIP(ip netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.info.IP != ip {
		p.info.IP = ip
		p.host.log().Info(p.request.Port.VM+": the guest has an address", "network", p.request.Net.Name, "ip", ip.String())
	}
}

// A port whose keepers die before they answer asks on as long as it is there,
// after pauses that grow: its VM runs, and somebody has to serve it.
const (
	leastPause = 100 * time.Millisecond
	mostPause  = 10 * time.Second
)

// rejoin finds the keeper that replaces a dead one, or starts it, also for a
// port that is leaving: somebody has to take it away. It returns nil when there
// is nothing more to hold.
func (p *Port) rejoin(ctx context.Context) *net.UnixConn {
	log := p.host.log().With("network", p.request.Net.Name)
	log.Warn("the network's keeper died, another one takes over")
	a, err := p.attach(ctx)
	for pause := leastPause; errors.Is(err, errNoKeeper) && !p.isClosing(pause); pause = min(2*pause, mostPause) {
		log.Warn("no keeper could take over yet", "cause", err)
		a, err = p.attach(ctx)
	}
	switch {
	case err != nil:
		log.Error("lost the network", "cause", err)
		return nil
	case a.gone != nil:
		if !p.isClosing(leavingPatience) {
			log.Error("lost the network", "cause", "the TAP is gone")
		}
		a.conn.Close()
		p.detached <- *a.gone
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conn = a.conn
	if p.isClosing(0) { // Close has told the dead one only
		send(a.conn, request{Protocol: protocolVersion, Detach: true}, nil)
	}
	return a.conn
}

// leavingPatience is how long after its TAP was found gone a port may still be
// left without a word: its VM may be just ending.
const leavingPatience = time.Second

// isClosing tells whether the port is to be left, now or within a time.
func (p *Port) isClosing(within time.Duration) bool {
	select {
	case <-p.closing:
		return true
	default:
	}
	select {
	case <-p.closing:
		return true
	case <-time.After(within):
		return false
	}
}
