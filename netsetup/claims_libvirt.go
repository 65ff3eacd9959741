package netsetup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/vmrun/vmrun/netsetup/libvirt"
	"golang.org/x/sys/unix"
)

// libvirtPrefix begins the names of the files by which keepers share networks of
// libvirt's. Each holds a share of the file's lock; its text is empty unless
// vmrun started the network. Changes are made under a second lock beside it, for
// libvirt takes its time and the host's lock is others' as well.
const libvirtPrefix = "libvirt-"

// started is what has to be known of a network of libvirt's that vmrun started.
type started struct {
	Name   string                    `json:"name"`
	Bridge string                    `json:"bridge"`
	Index  int                       `json:"index,omitempty"` // of the bridge; 0: the start was not seen to its end
	Router string                    `json:"router"`          // net.ipv4.ip_forward before, which libvirt sets
	Links  map[string]linkForwarding `json:"links"`           // and with it that of every link
	Origin string                    `json:"boot,omitempty"`  // as of claims; "": not noted
}

type linkForwarding struct {
	Index int    `json:"index"`
	Value string `json:"value"`
}

func (c *claims) libvirtPath(uuid string) string { return filepath.Join(c.dir, libvirtPrefix+uuid) }

// joinLibvirt claims a network and starts it where it is not active.
func (c *claims) joinLibvirt(k kernel, o joinLibvirt) error {
	change, err := lockFile(c.libvirtPath(o.UUID)+".lock", unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer change.Close()
	if err := c.rejoinLibvirt(o.UUID); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), libvirtChange)
	defer cancel()
	if active, err := isActive(ctx, k, o.UUID); err != nil || active {
		return err
	}
	before, err := c.beforeStart(k, o)
	if err != nil {
		return err
	}
	if err := writeStarted(c.libvirtPath(o.UUID), before); err != nil {
		return err
	}
	ours, err := k.Libvirt().Start(ctx, o.UUID)
	if err != nil {
		return err // the undo finds out whether it was started nevertheless
	}
	if !ours {
		return os.Truncate(c.libvirtPath(o.UUID), 0)
	}
	links, err := k.Links()
	if err != nil {
		return err
	}
	l, ok := Facts{Links: links}.link(o.Bridge)
	if !ok {
		return fmt.Errorf("libvirt started the network without its bridge %s", o.Bridge)
	}
	before.Index = l.Index
	return writeStarted(c.libvirtPath(o.UUID), before)
}

// rejoinLibvirt takes a share of a network; "" is none.
func (c *claims) rejoinLibvirt(uuid string) error {
	if uuid == "" {
		return nil
	}
	f, err := lockFile(c.libvirtPath(uuid), unix.LOCK_SH)
	if err == nil {
		c.hold(libvirtPrefix+uuid, f)
	}
	return err
}

func isActive(ctx context.Context, k kernel, uuid string) (bool, error) {
	networks, err := k.Libvirt().Networks(ctx)
	for _, n := range networks {
		if n.UUID == uuid {
			return n.Active, nil
		}
	}
	return false, err
}

// beforeStart reads what a start changes beyond the network itself.
func (c *claims) beforeStart(k kernel, o joinLibvirt) (started, error) {
	host, err := c.lock()
	if err != nil {
		return started{}, err
	}
	defer host.Close()
	s := started{Name: o.Name, Bridge: o.Bridge, Origin: c.origin}
	if s.Router, err = k.Sysctl(routerKey); err != nil {
		return s, err
	}
	s.Links, err = c.forwarding(k)
	return s, err
}

// forwardedByDefault stands for links that are yet to come.
const forwardedByDefault = "default"

// forwarding reads the forwarding of every link.
func (c *claims) forwarding(k kernel) (map[string]linkForwarding, error) {
	links, err := k.Links()
	if err != nil {
		return nil, err
	}
	all := map[string]linkForwarding{}
	for _, l := range append(links, Link{Name: forwardedByDefault}) {
		value, err := k.Sysctl(forwardingKey(l.Name))
		if errors.Is(err, errGone) {
			continue // the link went meanwhile
		}
		if err != nil {
			return nil, err
		}
		all[l.Name] = linkForwarding{l.Index, value}
	}
	return all, nil
}

// leaveLibvirt gives a network up; it returns what the last one did, "" for
// nothing.
func (c *claims) leaveLibvirt(k kernel, o leaveLibvirt) (string, error) {
	change, err := lockFile(c.libvirtPath(o.UUID)+".lock", unix.LOCK_EX)
	if err != nil {
		return "", err
	}
	defer change.Close()
	c.drop(libvirtPrefix + o.UUID)
	f, err := lockFile(c.libvirtPath(o.UUID), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return "", nil // another network of vmrun's uses it
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	before, ok := c.readStarted(f)
	if !ok {
		return "", f.Truncate(0) // of another boot or namespace: void
	}
	stopped, err := c.stopLibvirt(k, o, before)
	if err != nil {
		return "", err
	}
	done, err := c.restoreRouter(k, before)
	if err == nil && done {
		err = f.Truncate(0)
	}
	return stopped, err
}

// stopLibvirt stops a network that is still the one that we started and that
// nobody else is on.
func (c *claims) stopLibvirt(k kernel, o leaveLibvirt, before started) (string, error) {
	links, err := k.Links()
	if err != nil {
		return "", err
	}
	bridge, ok := Facts{Links: links}.link(before.Bridge)
	if ok && before.Index != 0 && bridge.Index != before.Index {
		return "", nil // somebody else stopped it and started it again
	}
	for _, l := range links {
		// The -nic is a part of the network in older versions of libvirt.
		mine := o.Group != 0 && l.Group == o.Group || l.Name == bridge.Name+"-nic"
		if ok && l.Master == bridge.Index && !mine {
			return "", nil
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), libvirtChange)
	defer cancel()
	err = k.Libvirt().Stop(ctx, o.UUID)
	switch {
	case errors.Is(err, libvirt.ErrGone):
		return "", nil
	case errors.Is(err, libvirt.ErrAbsent) && !ok:
		return "", nil // nothing is left of it
	case err != nil:
		return "", err
	}
	return "stopped libvirt's network " + before.Name, nil
}

// restoreRouter takes ip_forward back, which a start of libvirt's has set and
// which it never resets. It is left alone where somebody may count on it: the
// network runs on, or another one of libvirt's does, or there are links that we
// know nothing of. It returns false where it is to be tried again later, as
// networks of vmrun's count on it.
func (c *claims) restoreRouter(k kernel, before started) (done bool, err error) {
	host, err := c.lock()
	if err != nil {
		return false, err
	}
	defer host.Close()
	router, err := k.Sysctl(routerKey)
	if err != nil || before.Router != "0" || router != "1" {
		return true, err
	}
	now, err := c.forwarding(k)
	if err != nil {
		return false, err
	}
	for name, r := range now {
		if !isOurs(name) && before.Links[name].Index != r.Index {
			return true, nil
		}
	}
	if active, err := anyActive(k); err != nil || active {
		return true, ignoreAbsent(err)
	}
	if claimed, err := c.anyForwarding(); err != nil || claimed {
		return false, err
	}
	if err := k.SetSysctl(routerKey, "0"); err != nil {
		return false, err
	}
	for name, r := range now { // all of them are off now
		if old, ok := before.Links[name]; ok {
			r = old
		}
		if r.Value == "1" {
			if err := ignoreGone(k.SetSysctl(forwardingKey(name), r.Value)); err != nil {
				return false, err
			}
		}
	}
	return true, nil
}

func anyActive(k kernel) (bool, error) {
	ctx, cancel := context.WithTimeout(context.Background(), libvirtQuestion)
	defer cancel()
	networks, err := k.Libvirt().Networks(ctx)
	for _, n := range networks {
		if n.Active && n.Bridge != "" {
			return true, nil
		}
	}
	return false, err
}

func ignoreAbsent(err error) error {
	if errors.Is(err, libvirt.ErrAbsent) {
		return nil
	}
	return err
}

// anyForwarding tells whether a network of vmrun's forwards by some link.
func (c *claims) anyForwarding() (bool, error) {
	files, err := filepath.Glob(c.path("*"))
	if err != nil {
		return false, err
	}
	for _, path := range files {
		f, err := lockFile(path, unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		f.Close()
	}
	return false, nil
}

// sweepLibvirt stops a network that vmrun started and that nobody of vmrun's
// uses any more.
func (c *claims) sweepLibvirt(k kernel, uuid string) (string, error) {
	return c.leaveLibvirt(k, leaveLibvirt{UUID: uuid})
}

// voidLibvirt is voidLink for a network of libvirt's.
func (c *claims) voidLibvirt(uuid string) error {
	return void(c.libvirtPath(uuid), func(f *os.File) bool {
		_, ok := c.readStarted(f)
		return ok
	})
}

// maxStarted bounds the text of a started network, far above what a host with
// thousands of links takes, in bytes.
const maxStarted = 4 << 20

func (c *claims) readStarted(f *os.File) (started, bool) {
	var s started
	text, err := io.ReadAll(io.NewSectionReader(f, 0, maxStarted))
	if err != nil || strings.TrimSpace(string(text)) == "" {
		return s, false
	}
	return s, json.Unmarshal(text, &s) == nil && (s.Origin == "" || c.isOf(s.Origin))
}

// writeStarted overwrites the file in place, for its lock is the share.
func writeStarted(path string, s started) error {
	text, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode started network: %w", err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("note started network: %w", err)
	}
	return nil
}
