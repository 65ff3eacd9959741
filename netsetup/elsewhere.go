package netsetup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
)

// ElsewhereError says that a network belongs to another network namespace than
// that of this process.
type ElsewhereError struct {
	Namespace uint64 `json:"namespace"`         // the other one's inode
	Way       string `json:"way,omitempty"`     // a file that leads there; "": none is in sight
	Journal   string `json:"journal,omitempty"` // of what a dead keeper has left there; "": the network is up
}

func (e *ElsewhereError) Error() string {
	if e.Journal == "" {
		return fmt.Sprintf("it is up in another network namespace, net:[%d]", e.Namespace)
	}
	return fmt.Sprintf("it was up in another network namespace, net:[%d], and what its dead keeper left there is not undone", e.Namespace)
}

// elsewhere tells whether the journal in a network's folder is of another network
// namespace. Of one that can't be read, who opens it tells why.
func elsewhere(dir string) bool {
	j, err := readJournal(dir, slog.New(slog.DiscardHandler))
	return err == nil && j.elsewhere() != nil
}

// namedElsewhere tells a network of another namespace by its bridge, whose name
// derives from that. Journals of earlier versions say nothing else of it.
func (h Host) namedElsewhere(dir string) bool {
	saved, err := loadSpec(filepath.Join(dir, specName))
	if err != nil || saved.Network.joined() {
		return false
	}
	id, err := instance(h.Runtime)
	return err == nil && saved.Network.Link != newNames(id, saved.Network.Spec).bridge
}

// clearElsewhere is forgetGone for a network that nobody is known to have locked.
// Of one that has a keeper there is nothing to forget.
func clearElsewhere(ctx context.Context, h Host, dir string) error {
	if !elsewhere(dir) {
		return nil
	}
	lock, err := lockDead(ctx, dir)
	if lock == nil || err != nil {
		return err
	}
	defer lock.Close()
	_, err = forgetGone(h, dir)
	return err
}

// forgetGone forgets what was of a network in a namespace that is gone, and tells
// so. Where the namespace is still there an *ElsewhereError says that. The caller
// holds the network's lock.
func forgetGone(h Host, dir string) (report []string, err error) {
	j, err := readJournal(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	where := j.elsewhere()
	if where == nil {
		return nil, nil
	}
	way, gone := where.way()
	if !gone {
		return nil, &ElsewhereError{Namespace: where.Net, Way: way, Journal: j.path}
	}
	claims, err := claimsIn(h.Runtime, *where)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, u := range j.undos() {
		switch u := u.(type) {
		case unforward:
			errs = append(errs, claims.voidLink(u.Link))
		case leaveLibvirt:
			errs = append(errs, claims.voidLibvirt(u.UUID))
		}
	}
	errs = append(errs, settleFolder(dir), removeWritten(j.path))
	return []string{fmt.Sprintf("network %s: forgotten, the network namespace that it was in is gone", filepath.Base(dir))}, errors.Join(errs...)
}
