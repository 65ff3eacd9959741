package netsetup

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// restore notes again what a damaged journal may have listed. All names derive
// from the network, which spec.json tells, and to undo what was never done is no
// failure.
func (j *journal) restore(h Host, w *effects) error {
	if !j.damaged {
		return nil
	}
	dir := filepath.Dir(j.path)
	saved, err := loadSpec(filepath.Join(dir, specName))
	if err != nil {
		return j.hopeless(fmt.Errorf("%w; its links are called vmrun-%s-ID, and its rules by the same ID", err, networkName(filepath.Base(dir))))
	}
	id, err := instance(h.Runtime)
	if err != nil {
		return err
	}
	r, n := saved.Network, newNames(id, saved.Network.Spec)
	facts, err := readRoutes(w.kernel)
	switch {
	case err != nil:
	case h.namedElsewhere(dir):
		err = j.hopeless(fmt.Errorf("%s is of another network namespace", r.Link))
	case r.joined(): // for libvirt's network there is a claim
	case r.Takeover:
		err = j.checkGiveBack(r, facts)
	default:
		err = j.recordNetwork(w, r, n)
	}
	if err == nil {
		err = j.recordTAPs(n, facts)
	}
	j.damaged = err != nil
	return err
}

// hopeless says that a damaged journal's network has to be removed by hand.
func (j *journal) hopeless(cause error) error {
	return fmt.Errorf("journal %s is damaged, and what it listed may be left on the host (%w): remove that by hand, then the folder %s",
		j.path, cause, filepath.Dir(j.path))
}

// recordTAPs notes the network's TAPs that no entry names. What else was known of
// their ports is lost, and may come back from their members.
func (j *journal) recordTAPs(n names, f Facts) error {
	var errs []error
	for _, l := range f.Links {
		known := func(e entry) bool { return e.Port.Link == l.Name }
		if !isOurs(l.Name) || !strings.HasPrefix(l.Name, n.tapPrefix()) || l.Persistent || slices.ContainsFunc(j.ports(), known) {
			continue
		}
		port := &portRecord{ID: rand.Text(), UID: uint32(os.Geteuid()), Spec: PortSpec{VM: l.Name}, Link: l.Name, Since: time.Now().UTC()}
		_, err := j.recordPort(delLinks{Group: n.group, Names: []string{l.Name}}, port)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// isLost tells a port of which a damaged journal knew no more than its TAP.
func (p *portRecord) isLost() bool { return p.Spec.MAC == MAC{} }

// checkGiveBack holds that the host gets back what a bridge has taken over: only
// the journal knew it, and without the bridge it would be lost.
func (j *journal) checkGiveBack(r Resolved, f Facts) error {
	if j.lends() {
		return nil
	}
	if _, there := f.link(r.Link); !there {
		return nil
	}
	return j.hopeless(fmt.Errorf("what %s had is on %s", r.Uplink, r.Link))
}

// lends tells whether an uplink has to have something back.
func (j *journal) lends() bool {
	for _, u := range j.undos() {
		if _, ok := u.(giveBack); ok {
			return true
		}
	}
	return false
}

// recordNetwork notes what undoes a network, as far as it is not noted. Whether a
// link forwarded before, nobody knows: the claims do.
func (j *journal) recordNetwork(w *effects, r Resolved, n names) error {
	facts, err := readFacts(w.kernel, w.claims, "")
	if err != nil {
		return err
	}
	facts.Forward = nil
	var errs []error
	for _, s := range networkSteps(r, n, facts) {
		if s.undo != nil {
			errs = append(errs, j.record(s.undo))
		}
	}
	return errors.Join(errs...)
}
