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

// restore notes again what a damaged journal may have listed, before what can be
// read of it. All names derive from the network, which spec.json tells, and to undo
// what was never done is no failure.
func (j *journal) restore(h Host, w *effects) error {
	if !j.damaged {
		return nil
	}
	dir := filepath.Dir(j.path)
	saved, err := loadSpec(filepath.Join(dir, specName))
	if err != nil {
		return j.hopeless(fmt.Errorf("%w; its links are called vmrun-%s-ID, and its rules by the same ID", err, networkName(filepath.Base(dir))))
	}
	if h.namedElsewhere(dir) {
		return j.hopeless(fmt.Errorf("%s is of another network namespace", saved.Network.Link))
	}
	id, err := instance(h.Runtime)
	if err != nil {
		return err
	}
	r, n := saved.Network, newNames(id, saved.Network.Spec)
	facts, err := readFacts(w.kernel, w.claims, "")
	if err != nil {
		return err
	}
	if err := j.checkGiveBack(r, n, facts); err != nil {
		return err
	}
	readable := j.entries
	err = j.rewrite(func() error {
		return errors.Join(j.recordNetwork(r, n, facts), j.recordAgain(readable), j.recordTAPs(n, facts))
	})
	if err != nil {
		return err
	}
	return j.dropNeedlessTransit(w, r, n, facts)
}

// hopeless says that a damaged journal's network has to be removed by hand.
func (j *journal) hopeless(cause error) error {
	return fmt.Errorf("journal %s is damaged, and what it listed may be left on the host (%w): remove that by hand, then the journal and %s",
		j.path, cause, specName)
}

// rewrite replaces the journal by what note records. A crash leaves the old one or
// the new one.
func (j *journal) rewrite(note func() error) error {
	f, err := os.OpenFile(j.path+".new", os.O_RDWR|os.O_APPEND|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	old := *j
	j.file, j.entries, j.next, j.damaged = f, nil, 1, false
	if err = note(); err == nil {
		err = os.Rename(j.path+".new", j.path)
	}
	if err != nil {
		*j = old
		return errors.Join(fmt.Errorf("write journal: %w", err), f.Close(), removeIfThere(j.path+".new"))
	}
	return old.file.Close()
}

// recordNetwork notes what undoes a network. Whether a link forwarded before is the
// claims' to know, and what a takeover has lent can't be told again.
func (j *journal) recordNetwork(r Resolved, n names, f Facts) error {
	switch {
	case r.LibvirtUUID != "":
		return j.record(leaveLibvirt{Name: r.Spec.Libvirt, UUID: r.LibvirtUUID, Bridge: r.Link, Group: n.group})
	case r.joined():
		return nil
	}
	f.Forward = nil
	var errs []error
	for _, s := range networkSteps(r, n, f) {
		switch s.undo.(type) {
		case nil, giveBack, delPolicyRules:
		default:
			errs = append(errs, j.record(s.undo))
		}
	}
	return errors.Join(errs...)
}

// recordAgain notes entries once more.
func (j *journal) recordAgain(entries []entry) error {
	var errs []error
	for _, e := range entries {
		u, err := e.Undo.decode()
		switch {
		case err != nil:
		case e.Port != nil:
			_, err = j.recordPort(u, e.Port)
		default:
			err = j.record(u)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// recordTAPs notes the network's TAPs that no entry names. What else was known of
// their ports is lost, and may come back from their members.
func (j *journal) recordTAPs(n names, f Facts) error {
	var errs []error
	for _, l := range f.Links {
		known := func(e entry) bool { return e.Port.Link == l.Name }
		if l.Group != n.group || !isOurs(l.Name) || !strings.HasPrefix(l.Name, n.tapPrefix()) || slices.ContainsFunc(j.ports(), known) {
			continue
		}
		port := &portRecord{ID: rand.Text(), UID: uint32(os.Geteuid()), Spec: PortSpec{VM: l.Name}, Link: l.Name, Since: time.Now().UTC()}
		_, err := j.recordPort(delLinks{Group: n.group, Names: []string{l.Name}}, port)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// dropNeedlessTransit undoes what would keep links from transit that forward without
// us: that was noted only because it may have been there.
func (j *journal) dropNeedlessTransit(w *effects, r Resolved, n names, f Facts) error {
	var errs []error
	for link, alone := range f.Forward {
		if alone {
			errs = append(errs, j.undoEntry(w, j.transitEntry(r, n, link)))
		}
	}
	return errors.Join(errs...)
}

// isLost tells a port of which a damaged journal knew no more than its TAP.
func (p *portRecord) isLost() bool { return p.Spec.MAC == MAC{} }

// checkGiveBack holds that the host gets back what a bridge has taken over: only
// the journal knew it, and without the bridge it would be lost.
func (j *journal) checkGiveBack(r Resolved, n names, f Facts) error {
	isBridge := func(l Link) bool { return l.Name == r.Link || l.Group == n.group && l.Kind == "bridge" } // by whatever name
	if !r.Takeover || !slices.ContainsFunc(f.Links, isBridge) || j.lends() {
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
