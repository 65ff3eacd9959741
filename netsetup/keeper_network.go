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
)

// bringUp makes the network, or leaves nothing.
func (k *keeper) bringUp(spec Spec) error {
	started := time.Now()
	id, err := instance(k.host.Runtime)
	if err != nil {
		return err
	}
	k.names = newNames(id, spec)
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
	host, err := k.w.claims.lock()
	if err != nil {
		return err
	}
	release := sync.OnceFunc(func() { host.Close() })
	defer release()
	facts, err := readFacts(k.w.kernel, k.w.claims)
	if err != nil {
		return err
	}
	network, steps, err := planNetwork(spec, k.names, facts)
	if err != nil {
		return err
	}
	k.services, err = openServices(k, network)
	if err != nil {
		return err
	}
	k.network, steps = withDNSPort(network, steps, k.names, facts, k.services.dnsPort())
	if err := k.saveSpec(); err != nil {
		return err
	}
	claimed := slices.IndexFunc(steps, func(s step) bool { _, ok := s.do.(forward); return ok })
	if claimed < 0 {
		claimed = len(steps)
	}
	if err := apply(k.w, k.journal, steps[:claimed]); err != nil {
		return err
	}
	release() // forwarding takes the host's lock for itself
	if err := apply(k.w, k.journal, steps[claimed:]); err != nil {
		return err
	}
	return k.services.start(k)
}

// savedSpec is the network as a new keeper finds it after the old one's death.
type savedSpec struct {
	Version int      `json:"version"`
	Network Resolved `json:"network"`
}

func (k *keeper) saveSpec() error {
	text, err := json.MarshalIndent(savedSpec{journalVersion, k.network}, "", "  ")
	if err != nil {
		return fmt.Errorf("encode network: %w", err)
	}
	return writeFile(filepath.Join(k.dir, "spec.json"), text)
}

// writeFile replaces a file as a whole: readers see the old or the new one.
func writeFile(path string, text []byte) error {
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// teardown undoes everything, past failures, and tells all of them.
func (k *keeper) teardown() detachResult {
	started := time.Now()
	k.phase = closing
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
	errs = append(errs, k.journal.undo(k.w))
	if len(k.journal.entries) == 0 {
		errs = append(errs, removeIfThere(filepath.Join(k.dir, "spec.json")))
	}
	return errors.Join(errs...)
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
