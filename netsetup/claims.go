package netsetup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/netsetup/firewall"
)

// claims is what the networks of one host agree on beside the kernel: a lock
// per host, and for each interface that is forwarded for us a file with the
// value before, share-locked by every keeper that needs it. A lock goes with
// its process, so the last user is always known, whoever was killed.
type claims struct {
	dir    string
	origin string // id of the running kernel, and the namespace's cookie: what files say of others is void

	mu   sync.Mutex
	held map[string]*os.File // by link
}

func newClaims(runtime string) (*claims, error) {
	c, err := claimsHere(runtime)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(c.dir, 0o711); err != nil {
		return nil, fmt.Errorf("make folder of host claims: %w", err)
	}
	return c, nil
}

// claimsHere is newClaims for who only looks: the folder need not be there.
func claimsHere(runtime string) (*claims, error) {
	now, err := here()
	if err != nil {
		return nil, err
	}
	return claimsIn(runtime, now)
}

// claimsIn is claimsHere for any network namespace.
func claimsIn(runtime string, p place) (*claims, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id") // random(4)
	if err != nil {
		return nil, fmt.Errorf("read id of this boot: %w", err)
	}
	c := &claims{dir: p.hostFolder(runtime), origin: strings.TrimSpace(string(boot)), held: map[string]*os.File{}}
	if p.Cookie != 0 {
		c.origin = fmt.Sprintf("%s/%d", c.origin, p.Cookie)
	}
	return c, nil
}

// lock takes the host's lock, waiting for it.
func (c *claims) lock() (*os.File, error) {
	return lockFile(filepath.Join(c.dir, "host.lock"), unix.LOCK_EX)
}

// lockFile opens a lock file and locks it. Lock files are created once and
// never unlinked: a waiter would get the lock of a file that nobody else sees.
func lockFile(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := flock(f, how); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return f, nil
}

// lockWithin is lockFile with a limit. A lock that comes too late is given back.
func lockWithin(ctx context.Context, path string, limit time.Duration) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	type result struct {
		lock *os.File
		err  error
	}
	taken := make(chan result)
	go func() {
		lock, err := lockFile(path, unix.LOCK_EX)
		select {
		case taken <- result{lock, err}:
		case <-ctx.Done():
			if err == nil {
				lock.Close()
			}
		}
	}()
	select {
	case r := <-taken:
		return r.lock, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("lock %s: %w", path, context.Cause(ctx))
	}
}

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			return err
		}
	}
}

// record is what an interface was before vmrun forwarded for it.
type record struct {
	index  int // of the interface, which may be a new one of the same name
	value  string
	router string // net.ipv4.ip_forward
	origin string
}

// routerSince tells whether somebody made the host a router since the record
// was made. Whoever does (Docker) sets all links to 1 and means it.
func (r record) routerSince(router string) bool { return r.router != "1" && router == "1" }

const routerKey = "net/ipv4/ip_forward"

func (c *claims) path(link string) string { return filepath.Join(c.dir, "forwarding-"+link) }

// read is the record in a link's file. It is not ok where there is none of this
// boot and namespace: what another one found is no state to go back to.
func (c *claims) read(f *os.File) (r record, ok bool) {
	text := make([]byte, 128)
	n, _ := f.ReadAt(text, 0)
	_, err := fmt.Sscanf(string(text[:n]), "%d %s %s %s\n", &r.index, &r.value, &r.router, &r.origin)
	return r, err == nil && c.isOf(r.origin)
}

// isOf tells whether what a file says is of this boot and network namespace. Of
// the namespace it may say nothing.
func (c *claims) isOf(origin string) bool {
	kernel, _, _ := strings.Cut(c.origin, "/")
	return origin == c.origin || origin == kernel
}

func writeRecord(f *os.File, r record) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt(fmt.Appendf(nil, "%d %s %s %s\n", r.index, r.value, r.router, r.origin), 0)
	return err
}

func forwardingKey(link string) string { return "net/ipv4/conf/" + link + "/forwarding" }

// forward claims a link and switches forwarding on.
func (c *claims) forward(k kernel, link string) error {
	host, err := c.lock()
	if err != nil {
		return err
	}
	defer host.Close()
	now, err := c.present(k, link)
	if err != nil {
		return ignoreGone(err) // links of containers come and go
	}
	f, err := lockFile(c.path(link), unix.LOCK_SH)
	if err != nil {
		return err
	}
	if before, ok := c.read(f); !ok || before.index != now.index {
		if err := writeRecord(f, now); err != nil {
			return errors.Join(fmt.Errorf("note forwarding of %s: %w", link, err), f.Close())
		}
	}
	c.hold(link, f)
	if now.value == "1" {
		return nil
	}
	return k.SetSysctl(forwardingKey(link), "1")
}

func (c *claims) hold(link string, f *os.File) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.held[link]; old != nil {
		old.Close()
	}
	c.held[link] = f
}

func (c *claims) drop(link string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.held[link]; f != nil {
		flock(f, unix.LOCK_UN) // a child that is just being forked has a copy of f
		f.Close()
		delete(c.held, link)
	}
}

// unforward gives a link up; the last one restores it.
func (c *claims) unforward(k kernel, link string) error {
	host, err := c.lock()
	if err != nil {
		return err
	}
	defer host.Close()
	c.drop(link)
	f, err := lockFile(c.path(link), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil // another network needs it
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return c.restore(k, link, f)
}

func (c *claims) restore(k kernel, link string, f *os.File) error {
	before, ok := c.read(f)
	if !ok {
		return f.Truncate(0)
	}
	now, err := c.present(k, link)
	if errors.Is(err, errGone) || err == nil && now.index != before.index {
		return f.Truncate(0) // the interface went, its setting with it
	}
	if err != nil {
		return err
	}
	if now.value == "1" && before.value != "1" && !before.routerSince(now.router) {
		if err := k.SetSysctl(forwardingKey(link), before.value); err != nil {
			return err
		}
	}
	return f.Truncate(0)
}

// voidLink forgets a link of a network namespace that is gone: the next one of its
// number may have a link of that name.
func (c *claims) voidLink(link string) error {
	return void(c.path(link), func(f *os.File) bool {
		_, ok := c.read(f)
		return ok
	})
}

// void empties a file of claims that nobody shares, unless what it says is not
// the gone namespace's but the next one's already.
func void(path string, isGones func(*os.File) bool) error {
	f, err := lockFile(path, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EWOULDBLOCK) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if !isGones(f) {
		return nil
	}
	return f.Truncate(0)
}

// present reads a link's state.
func (c *claims) present(k kernel, link string) (record, error) {
	index, err := k.Index(link)
	if err != nil {
		return record{}, err
	}
	value, err := k.Sysctl(forwardingKey(link))
	if err != nil {
		return record{}, err
	}
	router, err := k.Sysctl(routerKey)
	return record{index, value, router, c.origin}, err
}

// madeRouterSince tells whether somebody made the host a router since a link
// was claimed.
func (c *claims) madeRouterSince(link, router string) bool {
	f, err := os.Open(c.path(link))
	if err != nil {
		return false
	}
	defer f.Close()
	before, ok := c.read(f)
	return ok && before.routerSince(router)
}

// forwardsAlone tells whether a link forwards without any network of ours.
func (c *claims) forwardsAlone(k kernel, link string) (bool, error) {
	now, err := c.present(k, link)
	if err != nil {
		return false, err
	}
	f, err := os.Open(c.path(link))
	if err == nil {
		defer f.Close()
		if before, ok := c.read(f); ok && before.index == now.index {
			return before.value == "1" || before.routerSince(now.router), nil
		}
	}
	return now.value == "1", nil
}

// readRoutes looks at the host's links and routes only.
func readRoutes(k kernel) (f Facts, err error) {
	if f.Links, err = k.Links(); err != nil {
		return f, err
	}
	f.Routes, err = k.Routes(f.Links)
	return f, err
}

// readFacts looks at the host. With a wish other than "" less is asked of the
// firewall: what it takes to carry rules as wished.
func readFacts(k kernel, c *claims, wish firewall.Wish) (Facts, error) {
	f, err := readRoutes(k)
	if err != nil {
		return f, err
	}
	if err := k.TUN(); err != nil {
		return f, err
	}
	if f.Firewall, err = k.Firewall(wish); err != nil {
		return f, err
	}
	f.Forward = map[string]bool{}
	for _, link := range f.egress() {
		alone, err := c.forwardsAlone(k, link)
		if ignoreGone(err) != nil {
			return f, err
		}
		f.Forward[link] = alone
	}
	return f, nil
}

// ReadFacts looks at the host as NewPlan wants it, without changing anything.
// The string is the instance that the plan's names derive from. Uplinks are looked
// at as far as the specs use them. A
// *MissingError says what the host lacks.
func ReadFacts(h Host, specs ...Spec) (Facts, string, error) {
	k, err := newHost(nil)
	if err != nil {
		return Facts{}, "", err
	}
	defer k.close()
	id, err := instance(h.Runtime)
	if err != nil {
		return Facts{}, "", err
	}
	c, err := claimsHere(h.Runtime)
	if err != nil {
		return Facts{}, "", err
	}
	f, err := readFacts(k, c, "")
	f.Wish = firewall.Wish(h.Firewall)
	f.Libvirt, f.NoLibvirt = readLibvirt(k)
	for _, spec := range specs {
		if err == nil {
			err = f.lookAtUplink(k, c, spec, newNames(id, spec))
		}
	}
	return f, id, err
}
