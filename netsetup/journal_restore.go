package netsetup

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// lacks tells whether a journal may have listed more than can be read of it. A
// network that has no spec.json was down: nothing is missing.
func (j *journal) lacks() bool {
	return j.damaged && exists(filepath.Join(filepath.Dir(j.path), specName))
}

// restore notes again what a damaged journal may have listed. All names derive
// from the network, which spec.json tells, and to undo what was never done is no
// failure. While a TAP of the network is left, vm tells which, and nothing is
// noted: its port may be among what is lost.
func (j *journal) restore(h Host, w *effects) (vm string, err error) {
	if !j.lacks() {
		return "", nil
	}
	dir := filepath.Dir(j.path)
	saved, err := loadSpec(filepath.Join(dir, specName))
	if err != nil {
		return "", j.hopeless(fmt.Errorf("%w; its links are called vmrun-%s-ID, and its rules by the same ID", err, networkName(filepath.Base(dir))))
	}
	id, err := instance(h.Runtime)
	if err != nil {
		return "", err
	}
	r, n := saved.Network, newNames(id, saved.Network.Spec)
	facts, err := readRoutes(w.kernel)
	if err != nil {
		return "", err
	}
	for _, l := range facts.Links {
		if isOurs(l.Name) && strings.HasPrefix(l.Name, n.tapPrefix()) && !l.Persistent {
			return l.describe(), nil
		}
	}
	switch {
	case h.namedElsewhere(dir):
		return "", j.hopeless(fmt.Errorf("%s is of another network namespace", r.Link))
	case r.joined(): // TAPs have gone, and for libvirt's network there is a claim
		return "", nil
	case r.Takeover:
		return "", j.checkGiveBack(r, facts)
	}
	return "", j.recordNetwork(w, r, n)
}

// hopeless says that a damaged journal's network has to be removed by hand.
func (j *journal) hopeless(cause error) error {
	return fmt.Errorf("journal %s is damaged, and what it listed may be left on the host (%w): remove that by hand, then the journal", j.path, cause)
}

// checkGiveBack holds that the host gets back what a bridge has taken over: only
// the journal knew it, and without the bridge it would be lost.
func (j *journal) checkGiveBack(r Resolved, f Facts) error {
	for _, u := range j.undos() {
		if _, ok := u.(giveBack); ok {
			return nil
		}
	}
	if _, there := f.link(r.Link); !there {
		return nil
	}
	return j.hopeless(fmt.Errorf("what %s had is on %s", r.Uplink, r.Link))
}

// recordNetwork notes what undoes a network, as far as it is not noted. Whether a
// link forwarded before, nobody knows: the claims do.
func (j *journal) recordNetwork(w *effects, r Resolved, n names) error {
	facts, err := readFacts(w.kernel, w.claims, "")
	if err != nil {
		return err
	}
	facts.Forward = nil
	noted := map[string]bool{}
	for _, u := range j.undos() {
		noted[u.String()] = true
	}
	var errs []error
	for _, s := range networkSteps(r, n, facts) {
		if s.undo != nil && !noted[s.undo.String()] {
			errs = append(errs, j.record(s.undo))
		}
	}
	return errors.Join(errs...)
}
