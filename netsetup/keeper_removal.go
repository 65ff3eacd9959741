package netsetup

import (
	"fmt"
	"slices"
	"sync"
)

// removals are the TAPs that members have left and that the kernel has not yet
// taken away. It waits for a grace period for each request, whatever the number
// of links in it: those that come while one is under way go together in the
// next, and nobody else waits for any of them.
type removals struct {
	wake    *sync.Cond // on the keeper's mutex: something is done
	waiting []*removal
	running []*removal
}

// removal is one TAP on its way out.
type removal struct {
	*holding
	done bool
	err  error
}

// pending tells whether a link of this name is on its way out.
func (r *removals) pending(link string) bool {
	is := func(x *removal) bool { return x.Link == link }
	return slices.ContainsFunc(r.waiting, is) || slices.ContainsFunc(r.running, is)
}

// remove takes away the TAP of a port that is no longer among the keeper's.
// The mutex is held by the caller, and given up while the kernel works.
func (k *keeper) remove(h *holding) error {
	r := &removal{holding: h}
	k.leaving.waiting = append(k.leaving.waiting, r)
	for !r.done {
		if len(k.leaving.running) > 0 {
			k.leaving.wake.Wait()
			continue
		}
		k.removeWaiting()
	}
	if r.err != nil {
		k.log.Error("undo", "cause", r.err)
	}
	return r.err
}

// removeWaiting takes away all that waits.
func (k *keeper) removeWaiting() {
	batch := k.leaving.waiting
	k.leaving.waiting, k.leaving.running = nil, batch
	err := k.removeLinks(batch)
	if err != nil && len(batch) > 1 {
		k.removeSingly(batch)
	} else {
		for _, r := range batch {
			r.err = k.crossRemoved(r, err)
		}
	}
	k.leaving.running = nil
	for _, r := range batch {
		r.done = true
	}
	k.leaving.wake.Broadcast()
}

// removeSingly finds out which of a batch can't be removed.
func (k *keeper) removeSingly(batch []*removal) {
	for _, r := range batch {
		r.err = k.crossRemoved(r, k.removeLinks([]*removal{r}))
	}
}

// removeLinks undoes several ports in one, without the mutex.
func (k *keeper) removeLinks(batch []*removal) error {
	all := delLinks{Group: k.names.group}
	for _, r := range batch {
		all.Names = append(all.Names, r.Link)
	}
	k.mu.Unlock()
	defer k.mu.Lock()
	faultPoint(rightBefore, all)
	err := all.do(k.w)
	faultPoint(rightAfter, all)
	return err
}

// crossRemoved notes in the journal that a port is gone, unless the network's
// end has done so.
func (k *keeper) crossRemoved(r *removal, err error) error {
	if err != nil {
		return fmt.Errorf("delete %s: %w", r.Link, err)
	}
	k.log.Info("undone", "undo", delLinks{Names: []string{r.Link}}.String())
	if !slices.ContainsFunc(k.journal.entries, func(e entry) bool { return e.Seq == r.seq }) {
		return nil
	}
	return k.journal.cross(r.seq)
}

// awaitRemovals waits until the kernel has taken away what it is at, or all
// that is named link. The mutex is given up meanwhile.
func (k *keeper) awaitRemovals(link string) {
	for link == "" && len(k.leaving.running) > 0 || link != "" && k.leaving.pending(link) {
		k.leaving.wake.Wait()
	}
}
