package netsetup

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Group is a group of users that root has opened a network to. Its members run
// VMs on it without root.
type Group struct {
	ID   uint32 `json:"gid"`
	Name string `json:"name"` // for people
}

// What one user without root may have of a keeper.
const (
	maxConnections = 96 // ports among them
	maxPorts       = 64
	maxRequests    = 4 // at a time; others get their turn between
	maxQueues      = 16
)

// requestTimeout is how long a connection may say nothing before it has asked
// for anything, and answerTimeout how long an answer may wait to be read.
const (
	requestTimeout = 5 * time.Second
	answerTimeout  = 5 * time.Second
)

// peer is who is at the other end of a connection, as the kernel knows it.
type peer struct {
	uid    uint32
	pid    int32
	groups []uint32 // the primary one and all others
}

// newPeer asks the kernel; nobody can be asked for is a stranger.
func newPeer(conn *net.UnixConn) peer {
	p := peer{uid: ^uint32(0)}
	raw, err := conn.SyscallConn()
	if err != nil {
		return p
	}
	raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			return
		}
		p = peer{uid: cred.Uid, pid: cred.Pid, groups: append(peerGroups(int(fd)), cred.Gid)}
	})
	return p
}

// peerGroups are the supplementary groups of the other end (SO_PEERGROUPS,
// Linux 4.13): the process's own, so that no name service is asked, which a
// static binary can't. Where the kernel has none, the primary group counts.
func peerGroups(fd int) []uint32 {
	const most = 65536 // NGROUPS_MAX
	groups := make([]uint32, 64)
	for len(groups) <= most {
		size := uint32(4 * len(groups))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		if errno == unix.ERANGE {
			groups = make([]uint32, 4*len(groups))
			continue
		}
		if errno != 0 {
			return nil
		}
		return groups[:size/4]
	}
	return nil
}

// trusted tells whose word counts: root's, and that of who runs the keeper.
func (p peer) trusted() bool { return p.uid == 0 || p.uid == uint32(os.Geteuid()) }

// in tells whether the other end belongs to a group.
func (p peer) in(g *Group) bool { return g != nil && slices.Contains(p.groups, g.ID) }

// visitors bounds what users without root have of the keeper, so that none of
// them takes it from the others.
type visitors struct {
	mu   sync.Mutex
	byID map[uint32]*visitor
}

type visitor struct {
	connections int
	requests    chan struct{} // a place for each at a time
}

// enter takes a user's new connection, or tells that there are enough.
func (v *visitors) enter(uid uint32) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.byID == nil {
		v.byID = map[uint32]*visitor{}
	}
	one := v.byID[uid]
	if one == nil {
		one = &visitor{requests: make(chan struct{}, maxRequests)}
		v.byID[uid] = one
	}
	if one.connections >= maxConnections {
		return false
	}
	one.connections++
	return true
}

// leave gives a connection back.
func (v *visitors) leave(uid uint32) {
	v.mu.Lock()
	defer v.mu.Unlock()
	one := v.byID[uid]
	if one.connections--; one.connections == 0 {
		delete(v.byID, uid)
	}
}

// turn waits until a user may ask for something; done ends it.
func (v *visitors) turn(uid uint32) (done func()) {
	v.mu.Lock()
	one := v.byID[uid]
	v.mu.Unlock()
	if one == nil {
		return func() {} // trusted, and never counted
	}
	one.requests <- struct{}{}
	return func() { <-one.requests }
}

var label = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`) })

// check finds what no port can be, whoever asks for it.
func (r attachRequest) check() error {
	p := r.Port
	switch {
	case r.ID == "" || len(r.ID) > 64:
		return errors.New("the port's id has to be 1 to 64 bytes")
	case !label().MatchString(p.VM):
		return conflict("name", "%.80q is no name of a VM: a DNS label is", p.VM)
	case p.NIC < 0 || p.NIC > 255:
		return fmt.Errorf("there is no NIC %d", p.NIC)
	case p.Queues < 0 || p.Queues > 256: // MAX_TAP_QUEUES of linux/drivers/net/tun.c
		return conflict("queues", "%d is out of range 1 to 256", p.Queues)
	case p.MAC[0]&1 != 0 || p.MAC == MAC{}:
		return conflict("mac", "%s is not the address of one machine", p.MAC)
	}
	return nil
}

// checkGuest holds a user without root to what opening a network to a group
// means: ordinary ports on the network as it is.
func (k *keeper) checkGuest(p PortSpec, uid uint32) error {
	ports := 0
	for _, h := range k.ports {
		if h.UID == uid {
			ports++
		}
	}
	switch {
	case ports >= maxPorts:
		return conflict("nics", "user %d has %d ports on the network, and more are for root", uid, ports)
	case p.Trunk:
		return conflict("trunk", "only root may let a VM send tagged frames")
	case p.Spoof:
		return conflict("spoof", "only root may let a VM send from any MAC")
	case p.Queues > maxQueues:
		return conflict("queues", "more than %d are for root", maxQueues)
	case p.MAC[0]&2 == 0:
		return conflict("mac", "%s is not locally administered, and might be another machine's: 52:54:00:… is free to use", p.MAC)
	}
	return errors.Join(k.checkGuestIP(p.IP), k.checkGuestLinks(p))
}

func (k *keeper) checkGuestIP(ip netip.Addr) error {
	n := k.network
	switch {
	case !ip.IsValid():
		return nil
	case !n.Subnet.IsValid():
		return conflict("ip", "the network's addresses are not vmrun's to give")
	case slices.Contains(n.taken(), ip):
		return conflict("ip", "%s is the host's or the gateway's", ip)
	case !n.Subnet.Contains(ip) || ip == n.Subnet.Masked().Addr() || ip == lastAddress(n.Subnet):
		return conflict("ip", "%s is not for a guest of %s", ip, n.Subnet.Masked())
	}
	return nil
}

// lastAddress is a subnet's broadcast address.
func lastAddress(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		a[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(a)
}

// checkGuestLinks keeps a port from taking what an interface of the host has:
// the frames to a pinned MAC go to its port.
func (k *keeper) checkGuestLinks(p PortSpec) error {
	links, err := k.w.kernel.Links()
	if err != nil {
		return err
	}
	for _, l := range links {
		switch {
		case l.MAC == p.MAC || l.MAC == tapMAC(p.MAC):
			return conflict("mac", "%s is that of an interface of the host", p.MAC)
		case l.Name == k.names.tap(p):
			return conflict("name", "its interface would be %s, which is there already", l.Name)
		}
	}
	return nil
}

// refuses says why somebody is not served at all; "" if they are.
func (k *keeper) refuses(who peer, r request) string {
	switch {
	case r.Protocol != protocolVersion:
		return fmt.Sprintf("the network's keeper is of another version of vmrun (its protocol %d, yours %d)",
			protocolVersion, r.Protocol)
	case r.Attach == nil && r.Hold == nil && !r.Down && !r.Inspect && !r.Follow:
		return "the first request has to attach, hold, inspect, follow or take down"
	case who.trusted():
		return ""
	case r.Attach != nil && r.Attach.Resume:
		return "" // its id and its user say whether it may
	case k.phase == fresh:
		return "the network is not up, and only root can bring it up"
	case !who.in(k.opened()):
		return "the network is open to " + k.opened().describe()
	case r.Hold != nil:
		return "only root can hold a network up"
	case r.Down:
		return onlyRootTakesDown
	case k.held != nil && k.held.draining && r.Attach != nil:
		return "the network is going down"
	}
	return ""
}

// elsewhere refuses members and holders of another network namespace: they would
// not see the network's links, nor would the keeper that they start when this one
// dies. Guests start none, and are served wherever they are.
func (k *keeper) elsewhere(who peer, r request) error {
	now := k.journal.in
	if r.In == nil || r.In.sameNet(now) || !who.trusted() {
		return nil
	}
	e := &ElsewhereError{Namespace: now.Net}
	if r.In.PID == now.PID {
		e.Way = fmt.Sprintf("/proc/%d/ns/net", os.Getpid())
	}
	return e
}

// onlyRootTakesDown is what members of its group and strangers hear alike.
const onlyRootTakesDown = "only root can take the network down"
