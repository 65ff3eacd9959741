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
	"strings"
	"sync"
	"time"
)

// Port is a NIC's end on a network, held by the process that attached it. Its
// methods may be called from several goroutines.
type Port struct {
	host    Host
	dir     string // the network's folder
	guest   bool   // the network is root's, who sees to its keeper
	request attachRequest
	info    attachment

	mu      sync.Mutex
	files   []*os.File
	conn    *net.UnixConn
	closing chan struct{} // closed when the port is to be left

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
	p := &Port{host: h, request: attachRequest{ID: rand.Text(), Net: spec, Port: port},
		closing: make(chan struct{}), detached: make(chan detachResult, 1)}
	p.dir, p.guest = h.folder(spec)
	if !p.guest {
		if err := os.MkdirAll(p.dir, 0o711); err != nil {
			return nil, fmt.Errorf("attach to network %s: %w", spec.Name, err)
		}
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
// the middle: a keeper that has just ended, or was killed. A keeper that can't
// start at all fails each time. The pause before the next attempt begins with
// attemptPause, and doubles with each failure.
const (
	attempts     = 8
	attemptPause = time.Millisecond
)

// pauseAfter waits after so many failures, or until ctx ends.
func pauseAfter(ctx context.Context, failed int) {
	select {
	case <-time.After(attemptPause << failed):
	case <-ctx.Done():
	}
}

// lastLine is the last thing that a network's keeper wrote down.
func lastLine(dir string) string {
	text, err := os.ReadFile(filepath.Join(dir, "keeper.log"))
	if err != nil {
		return "it left no log"
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return lines[len(lines)-1]
}

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
	for failed := 0; failed < attempts; pauseAfter(ctx, failed) {
		conn, err := p.connect(ctx)
		if nobodyListens(err) {
			last = err // the keeper that was just started has ended
			failed++
			continue
		}
		if err != nil {
			return attached{}, err
		}
		answer, files, err := ask(ctx, conn, p.request)
		switch {
		case ctx.Err() != nil:
			closeAll(files)
			return attached{}, errors.Join(context.Cause(ctx), p.withdraw(conn, answer))
		case err == nil && answer.Attached != nil:
			return attached{conn: conn, info: *answer.Attached, files: files}, nil
		case err == nil && answer.Detached != nil:
			return attached{conn: conn, gone: answer.Detached}, nil
		case err == nil && answer.Refused != nil:
			conn.Close()
			return attached{}, answer.Refused.err()
		}
		conn.Close()
		switch {
		case err != nil:
			last = err
			failed++
		case p.guest:
			return attached{}, errors.New("root's network is going down")
		default: // it is closing
			if err := awaitGone(ctx, p.dir); err != nil {
				return attached{}, err
			}
		}
	}
	return attached{}, noKeeper(p.dir, last)
}

func (p *Port) connect(ctx context.Context) (*net.UnixConn, error) {
	if p.guest {
		return connectGuest(ctx, p.dir)
	}
	return connect(ctx, p.host, p.dir)
}

func noKeeper(dir string, last error) error {
	return fmt.Errorf("%w: %s (log %s; %w)", errNoKeeper, lastLine(dir), filepath.Join(dir, "keeper.log"), last)
}

// errNoKeeper says that keepers die before they answer.
var errNoKeeper = errors.New("no keeper answers")

// withdraw waits until a keeper has taken back what was asked for, for ask has
// told it that nobody wants it any more.
func (p *Port) withdraw(conn *net.UnixConn, answer reply) error {
	defer conn.Close()
	if answer.Refused != nil || answer.Closing {
		return nil // there is nothing to take back
	}
	var err error
	for err == nil && answer.Detached == nil {
		answer = reply{}
		var files []*os.File
		files, err = receive(conn, &answer)
		closeAll(files)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("leave network %s: its keeper does not answer", p.request.Net.Name)
	}
	switch {
	case answer.Detached == nil:
		return p.sweep() // the keeper is dead
	case answer.Detached.Last && !p.guest:
		return awaitGone(context.Background(), p.dir)
	}
	return nil
}

// ask sends one request and waits for its reply. When ctx ends, it tells the
// keeper that the port is no longer wanted, and waits a bounded time for what
// that was doing meanwhile.
func ask(ctx context.Context, conn *net.UnixConn, r attachRequest) (reply, []*os.File, error) {
	stop := context.AfterFunc(ctx, func() {
		conn.SetReadDeadline(time.Now().Add(closingTimeout))
		send(conn, request{Protocol: protocolVersion, Detach: true}, nil)
	})
	defer stop()
	in, err := here()
	if err != nil {
		return reply{}, nil, err
	}
	if err := send(conn, request{Protocol: protocolVersion, Attach: &r, In: &in}, nil); err != nil {
		return reply{}, nil, err
	}
	var answer reply
	files, err := receive(conn, &answer)
	if err != nil {
		return reply{}, nil, err
	}
	if answer.Protocol != protocolVersion {
		return reply{Refused: &refusal{Text: otherVersion(answer.Protocol)}}, nil, closeAll(files)
	}
	return answer, files, nil
}

func otherVersion(protocol int) string {
	return fmt.Sprintf("the network's keeper is of another version of vmrun (its protocol %d, ours %d); end that network's VMs first",
		protocol, protocolVersion)
}

// Files are the TAP's, one per queue, to be inherited by QEMU. They stay the
// port's, which keeps them until it is closed: whoever closes the last copy of
// a TAP waits until the kernel has removed it, which takes QEMU's end, or a
// running guest whose NIC is detached, some 20 ms. The keeper removes it faster,
// with whatever else goes.
func (p *Port) Files() []*os.File {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.files
}

func (p *Port) closeFiles() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	files := p.files
	p.files = nil
	return closeAll(files)
}

// MAC is the guest's address on the wire.
func (p *Port) MAC() net.HardwareAddr { return p.request.Port.MAC.HardwareAddr() }

// IP is the address that the network reserved for the guest, or on a network of
// libvirt's the one that the guest has got there; zero while it has none, and
// where the network has neither.
func (p *Port) IP() netip.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.info.IP
}

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
	if p.isClosing(0) {
		p.mu.Unlock()
		return nil
	}
	close(p.closing)
	conn := p.conn
	p.mu.Unlock()
	// If the keeper is dead by now, watch finds another one and tells it.
	send(conn, request{Protocol: protocolVersion, Detach: true}, nil)
	var result detachResult
	var ok bool
	select {
	case result, ok = <-p.detached:
	case <-time.After(closingTimeout):
		p.leave()
		conn.Close() // the keeper takes that for our end, once it goes on
		return errors.Join(p.closeFiles(), fmt.Errorf("leave network %s: its keeper does not answer", p.request.Net.Name))
	}
	p.leave()
	p.mu.Lock()
	p.conn.Close()
	p.mu.Unlock()
	err := p.closeFiles()
	if !ok {
		return errors.Join(err, p.sweep())
	}
	return errors.Join(err, p.finish(result))
}

func (p *Port) finish(result detachResult) (err error) {
	if result.Errors != "" {
		err = fmt.Errorf("leave network %s: %s", p.request.Net.Name, result.Errors)
	}
	if result.Last && !p.guest {
		return errors.Join(err, awaitGone(context.Background(), p.dir))
	}
	return err
}

// sweep cleans up where no keeper could be found to do it.
func (p *Port) sweep() error {
	if p.guest {
		return fmt.Errorf("leave network %s: its keeper is gone, and only root can undo the rest", p.request.Net.Name)
	}
	report, err := sweepNetwork(context.Background(), p.host, p.dir)
	for _, line := range report {
		p.host.log().Info("swept", "network", p.request.Net.Name, "removed", line)
	}
	return err
}
