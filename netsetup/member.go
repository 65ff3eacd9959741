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

	detached chan detachResult // what the keeper said, closed when it is gone for good
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
	if err := p.attach(ctx); err != nil {
		return nil, fmt.Errorf("attach to network %s: %w", spec.Name, err)
	}
	go p.watch()
	return p, nil
}

// attempts is how often a member starts over when the other side goes away in
// the middle: a keeper that was closing, or was killed. A keeper that can't
// start at all fails each time.
const attempts = 5

// attach asks for the port until a keeper has answered.
func (p *Port) attach(ctx context.Context) error {
	var last error
	for range attempts {
		conn, err := connect(ctx, p.host, p.dir)
		if err != nil {
			return err
		}
		answer, files, err := ask(ctx, conn, p.request)
		if err == nil && answer.Attached != nil {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.conn, p.info = conn, *answer.Attached
			if len(files) > 0 {
				p.files = files
			}
			return nil
		}
		conn.Close()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == nil && answer.Refused != nil:
			return answer.Refused.err()
		case err == nil && answer.Closing:
			if err := awaitGone(ctx, p.dir); err != nil {
				return err
			}
		case err != nil:
			last = err
		}
	}
	return fmt.Errorf("no keeper answers (%w); its log is %s", last, filepath.Join(p.dir, "keeper.log"))
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
func (p *Port) watch() {
	defer close(p.detached)
	for {
		p.mu.Lock()
		conn := p.conn
		p.mu.Unlock()
		var answer reply
		files, err := receive(conn, &answer)
		closeAll(files)
		if err == nil && answer.Detached != nil {
			p.detached <- *answer.Detached
			return
		}
		if err == nil {
			continue
		}
		if p.isClosing() {
			return
		}
		p.host.log().Warn("lost the network's keeper, adopting", "network", p.request.Net.Name, "cause", err)
		conn.Close()
		if err := p.attach(context.Background()); err != nil {
			p.host.log().Error("lost the network", "network", p.request.Net.Name, "cause", err)
			return
		}
	}
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
	if sendErr := send(conn, request{Protocol: protocolVersion, Detach: true}, nil); sendErr == nil {
		if result, ok := <-p.detached; ok {
			return errors.Join(err, p.finish(conn, result))
		}
	}
	conn.Close()
	return errors.Join(err, p.orphaned())
}

func (p *Port) finish(conn *net.UnixConn, result detachResult) error {
	err := conn.Close()
	if result.Errors != "" {
		err = errors.Join(err, fmt.Errorf("leave network %s: %s", p.request.Net.Name, result.Errors))
	}
	if result.Last {
		return errors.Join(err, awaitGone(context.Background(), p.dir))
	}
	return err
}

// orphaned cleans up after a keeper that died while the port was leaving.
func (p *Port) orphaned() error {
	report, err := sweepNetwork(p.host, p.dir)
	for _, line := range report {
		p.host.log().Info("swept", "network", p.request.Net.Name, "removed", line)
	}
	return err
}
