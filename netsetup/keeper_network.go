package netsetup

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/vmrun/vmrun/netsetup/firewall"
)

// bringUp makes the network, or leaves nothing.
func (k *keeper) bringUp(spec Spec) error {
	started := time.Now()
	id, err := instance(k.host.Runtime)
	if err != nil {
		return err
	}
	k.names = newNames(id, spec)
	k.since = started.UTC()
	if err := k.build(spec); err != nil {
		k.result = detachResult{}
		return errors.Join(err, k.undo())
	}
	k.phase = up
	k.log.Info("up", "network", spec.Name, "bridge", k.network.Link, "took", time.Since(started).String())
	return nil
}

// build is bringUp without its undo. The host's lock is held from the choice of
// the subnet until the address is on the bridge, where others see it.
func (k *keeper) build(spec Spec) error {
	networks, noLibvirt := readLibvirt(k.w.kernel) // nobody waits for our locks because of it
	k.warnLibvirt(noLibvirt)
	host, err := k.w.claims.lock()
	if err != nil {
		return err
	}
	release := sync.OnceFunc(func() { host.Close() })
	defer release()
	facts, err := k.facts(spec)
	if err == nil {
		err = facts.lookAtUplink(k.w.kernel, k.w.claims, spec, k.names)
	}
	if err != nil {
		return err
	}
	facts.Libvirt, facts.NoLibvirt = networks, noLibvirt
	network, steps, err := planNetwork(spec, k.names, facts)
	if err != nil {
		return err
	}
	k.journal.damaged = false // what it may have listed would stand in the way
	for _, w := range ruleWarnings(spec, network.Backend, facts) {
		k.log.Warn("others filter", "cause", w)
	}
	k.services, err = openServices(k, network)
	if err != nil {
		return err
	}
	k.network, steps = withDNSPort(network, steps, k.names, facts, k.services.dnsPort())
	if err := errors.Join(k.saveSpec(), k.armBefore(steps)); err != nil {
		return err
	}
	claimed := slices.IndexFunc(steps, needsNoHostLock)
	if claimed < 0 {
		claimed = len(steps)
	}
	if err := apply(k.w, k.journal, steps[:claimed]); err != nil {
		return err
	}
	release() // the rest take it for themselves
	if err := apply(k.w, k.journal, steps[claimed:]); err != nil {
		return err
	}
	if err := k.guardian.confirm(); err != nil {
		return fmt.Errorf("confirm to the dead-man: %w", err)
	}
	if err := k.noteBridge(); err != nil {
		return err
	}
	return k.services.start(k)
}

// noteBridge remembers the bridge that was made for the network, by what only that
// has: its name alone anybody can give to another link once it is gone.
func (k *keeper) noteBridge() error {
	links, err := k.w.kernel.Links()
	k.bridge = 0
	if l, ok := (Facts{Links: links}).link(k.names.bridge); ok && l.Group == k.names.group && l.Kind == "bridge" {
		k.bridge = l.Index
	}
	return err
}

// needsNoHostLock tells the first of the steps that are done without it.
func needsNoHostLock(s step) bool {
	switch s.do.(type) {
	case forward, joinLibvirt, awaitGateways:
		return true
	}
	return false
}

// facts are those of the host that this network needs to know.
func (k *keeper) facts(spec Spec) (Facts, error) {
	wish, err := k.wish(spec)
	if err != nil {
		return Facts{}, err
	}
	f, err := readFacts(k.w.kernel, k.w.claims, wish)
	f.Wish = wish
	return f, err
}

// wish is what shall carry the rules: what the profile says or, where it leaves
// that open, the environment of who started this keeper.
func (k *keeper) wish(spec Spec) (firewall.Wish, error) {
	return spec.wish(Facts{Wish: firewall.Wish(k.host.Firewall)})
}

// savedSpec is the network as a new keeper finds it after the old one's death.
type savedSpec struct {
	Version int       `json:"version"`
	Since   time.Time `json:"since"` // when it came up
	Group   *Group    `json:"group,omitempty"`
	In      *place    `json:"in,omitempty"`
	Network Resolved  `json:"network"`
}

// specName is the file of a savedSpec in the network's folder.
const specName = "spec.json"

func (k *keeper) saveSpec() error {
	text, err := json.MarshalIndent(savedSpec{journalVersion, k.since, k.opened(), &k.journal.in, k.network}, "", "  ")
	if err != nil {
		return fmt.Errorf("encode network: %w", err)
	}
	return writeFile(filepath.Join(k.dir, specName), text)
}

func loadSpec(path string) (savedSpec, error) {
	var saved savedSpec
	text, err := os.ReadFile(path)
	if err != nil {
		return saved, fmt.Errorf("read network: %w", err)
	}
	if err := json.Unmarshal(text, &saved); err != nil {
		return saved, fmt.Errorf("decode network: %w", err)
	}
	if saved.Version != journalVersion {
		return saved, fmt.Errorf("decode network: version %d", saved.Version)
	}
	return saved, nil
}

// writeFile replaces a file as a whole: readers see the old or the new one.
func writeFile(path string, text []byte) error {
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), removeIfThere(path+".new"))
	}
	return nil
}

// removeWritten removes a file of writeFile's, also one that a killed process
// had not done with.
func removeWritten(path string) error {
	return errors.Join(removeIfThere(path), removeIfThere(path+".new"))
}

// teardown undoes everything, past failures, and tells all of them.
func (k *keeper) teardown() detachResult {
	started := time.Now()
	k.phase = closing
	k.ending.Store(true)
	result := detachResult{Last: true}
	if err := k.undo(); err != nil {
		k.log.Error("undo", "cause", err)
		result.Errors = err.Error()
	}
	k.log.Info("down", "network", k.network.Name, "took", time.Since(started).String())
	return result
}

func (k *keeper) undo() (err error) {
	var errs []error
	if s := k.services; s != nil {
		k.services = nil
		closed := make(chan error)
		go func() { closed <- s.close() }() // closing a packet socket waits for the kernel, too
		defer func() { err = errors.Join(err, <-closed) }()
	}
	errs = append(errs, k.guardian.goBack(), k.journal.undo(k.w))
	if k.journal.done() {
		errs = append(errs, removeWritten(filepath.Join(k.dir, specName)))
	}
	errs = append(errs, k.standDown())
	return errors.Join(errs...)
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
