package netsetup

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Port is a NIC's end on a network, held by the process that attached it. Its
// methods may be called from several goroutines.
type Port struct {
	host    Host
	dir     string // the network's folder
	request attachRequest
	info    attachment

	mu      sync.Mutex
	files   []*os.File
	conn    *net.UnixConn
	closing bool

	leave    context.CancelFunc // gives the context of watch back
	detached chan detachResult  // what the keeper said, closed when it is gone for good
}

// Attach joins a network, bringing it up if this is the first member, and
// returns a port with an open TAP. Nothing is left behind where it fails. A
// *ConflictError or *MissingError says what stands in the way.
//
// The caller closes the port; should the caller die, the kernel and the keeper
// do.
func Attach(ctx context.Context, h Host, spec Spec, port PortSpec) (*Port, error) {
	p := &Port{host: h, dir: filepath.Join(netsFolder(h.Runtime), spec.folder()),
		request:  attachRequest{ID: rand.Text(), Net: spec, Port: port},
		detached: make(chan detachResult, 1)}
	if err := os.MkdirAll(p.dir, 0o711); err != nil {
		return nil, fmt.Errorf("attach to network %s: %w", spec.Name, err)
	}
	a, err := p.attach(ctx)
	if err != nil {
		return nil, fmt.Errorf("attach to network %s: %w", spec.Name, err)
	}
	p.conn, p.info, p.files = a.conn, a.info, a.files
	p.request.Resume = true
	watching, leave := context.WithCancel(context.Background())
	p.leave = leave
	go p.watch(watching)
	return p, nil
}

// attempts is how often a member starts over when the other side goes away in
// the middle: a keeper that was closing, or was killed. A keeper that can't
// start at all fails each time.
const attempts = 5

// attached is what a keeper has granted. Where a port was to be resumed that is
// there no more, gone is set instead.
type attached struct {
	conn  *net.UnixConn
	info  attachment
	files []*os.File
	gone  *detachResult
}

// attach asks for the port until a keeper has answered.
func (p *Port) attach(ctx context.Context) (attached, error) {
	var last error
	for range attempts {
		conn, err := connect(ctx, p.host, p.dir)
		if nobodyListens(err) {
			last = err // the keeper that was just started has ended
			continue
		}
		if err != nil {
			return attached{}, err
		}
		answer, files, err := ask(ctx, conn, p.request)
		switch {
		case ctx.Err() != nil:
			return attached{}, errors.Join(context.Cause(ctx), conn.Close(), closeAll(files))
		case err == nil && answer.Attached != nil:
			return attached{conn: conn, info: *answer.Attached, files: files}, nil
		case err == nil && answer.Detached != nil:
			return attached{conn: conn, gone: answer.Detached}, nil
		case err == nil && answer.Refused != nil:
			conn.Close()
			return attached{}, answer.Refused.err()
		}
		conn.Close()
		last = err
		if err == nil { // closing
			if err := awaitGone(ctx, p.dir); err != nil {
				return attached{}, err
			}
		}
	}
	return attached{}, fmt.Errorf("no keeper answers (%w); its log is %s", last, filepath.Join(p.dir, "keeper.log"))
}

// ask sends one request and waits for its reply, no longer than ctx.
func ask(ctx context.Context, conn *net.UnixConn, r attachRequest) (reply, []*os.File, error) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := send(conn, request{Protocol: protocolVersion, Attach: &r}, nil); err != nil {
		return reply{}, nil, err
	}
	var answer reply
	files, err := receive(conn, &answer)
	if err != nil {
		return reply{}, nil, err
	}
	if answer.Protocol != protocolVersion {
		text := fmt.Sprintf("the network's keeper is of another version of vmrun (its protocol %d, ours %d); end that network's VMs first",
			answer.Protocol, protocolVersion)
		return reply{Refused: &refusal{Text: text}}, nil, closeAll(files)
	}
	return answer, files, nil
}

// awaitGone waits until a closing keeper has ended, which frees its lock.
func awaitGone(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, closingTimeout)
	defer cancel()
	gone := make(chan error, 1)
	go func() {
		f, err := lockFile(filepath.Join(dir, "lock"), unix.LOCK_EX)
		if err == nil {
			err = f.Close()
		}
		gone <- err
	}()
	select {
	case err := <-gone:
		return err
	case <-ctx.Done():
		return fmt.Errorf("wait for the network's end: %w", context.Cause(ctx))
	}
}

// watch holds the membership: when the keeper dies, the next one is asked to
// adopt the port.
func (p *Port) watch(ctx context.Context) {
	defer close(p.detached)
	for conn := p.conn; conn != nil; conn = p.rejoin(ctx) {
		var answer reply
		files, err := receive(conn, &answer)
		for ; err == nil; files, err = receive(conn, &answer) {
			closeAll(files)
			if answer.Detached != nil {
				p.detached <- *answer.Detached
				return
			}
		}
		conn.Close()
	}
}

// rejoin finds the keeper that replaces a dead one, or starts it, also for a
// port that is leaving: somebody has to take it away. It returns nil when there
// is nothing more to hold.
func (p *Port) rejoin(ctx context.Context) *net.UnixConn {
	log := p.host.log().With("network", p.request.Net.Name)
	log.Warn("the network's keeper died, another one takes over")
	a, err := p.attach(ctx)
	switch {
	case err != nil:
		log.Error("lost the network", "cause", err)
		return nil
	case a.gone != nil:
		if !p.isClosing() {
			log.Error("lost the network", "cause", "the TAP is gone")
		}
		a.conn.Close()
		p.detached <- *a.gone
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conn = a.conn
	if p.closing { // Close has told the dead one only
		send(a.conn, request{Protocol: protocolVersion, Detach: true}, nil)
	}
	return a.conn
}

func (p *Port) isClosing() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closing
}

// Files are the TAP's, one per queue, to be inherited by QEMU. They stay the
// port's.
func (p *Port) Files() []*os.File {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.files
}

// CloseFiles closes the port's copies of the TAP. From then on the TAP lives
// and dies with the process that inherited it.
func (p *Port) CloseFiles() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	files := p.files
	p.files = nil
	return closeAll(files)
}

// MAC is the guest's address on the wire.
func (p *Port) MAC() net.HardwareAddr { return p.request.Port.MAC.HardwareAddr() }

// IP is the address that the network reserved for the guest; zero where the
// network has no DHCP of ours.
func (p *Port) IP() netip.Addr { return p.info.IP }

// Subnet is the network's range; zero where vmrun does not know it.
func (p *Port) Subnet() netip.Prefix { return p.info.Subnet }

// Gateway is what the guest is told to use; zero for none.
func (p *Port) Gateway() netip.Addr { return p.info.Gateway }

// Link is the TAP's name on the host.
func (p *Port) Link() string { return p.info.Link }

// Bridge is the name of the bridge that the TAP is in.
func (p *Port) Bridge() string { return p.info.Bridge }

// MTU is the network's, in bytes.
func (p *Port) MTU() int { return p.info.MTU }

// Members is how many ports the network had when this one joined, with it.
func (p *Port) Members() int { return p.info.Members }

// Network is the network's name in the profile.
func (p *Port) Network() string { return p.request.Net.Name }

// Close leaves the network and waits until the port is gone, and for the last
// member until the whole network is. It returns all that could not be undone.
func (p *Port) Close() error {
	p.mu.Lock()
	if p.closing {
		p.mu.Unlock()
		return nil
	}
	p.closing = true
	conn := p.conn
	p.mu.Unlock()
	err := p.CloseFiles()
	// If the keeper is dead by now, watch finds another one and tells it.
	send(conn, request{Protocol: protocolVersion, Detach: true}, nil)
	var result detachResult
	var ok bool
	select {
	case result, ok = <-p.detached:
	case <-time.After(closingTimeout):
		return errors.Join(err, fmt.Errorf("leave network %s: its keeper does not answer", p.request.Net.Name))
	}
	p.leave()
	p.mu.Lock()
	p.conn.Close()
	p.mu.Unlock()
	if !ok {
		return errors.Join(err, p.sweep())
	}
	return errors.Join(err, p.finish(result))
}

func (p *Port) finish(result detachResult) (err error) {
	if result.Errors != "" {
		err = fmt.Errorf("leave network %s: %s", p.request.Net.Name, result.Errors)
	}
	if result.Last {
		return errors.Join(err, awaitGone(context.Background(), p.dir))
	}
	return err
}

// sweep cleans up where no keeper could be found to do it.
func (p *Port) sweep() error {
	report, err := sweepNetwork(p.host, p.dir)
	for _, line := range report {
		p.host.log().Info("swept", "network", p.request.Net.Name, "removed", line)
	}
	return err
}
