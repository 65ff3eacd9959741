package firewall

import (
	"errors"
	"os"
)

// ErrAbsent is what removing says of a thing that is not there.
var ErrAbsent = errors.New("not there")

// Host is the firewall of the network namespace of this process. It may be used
// by several goroutines.
type Host struct {
	lock   *os.File
	tables tables
}

// NewHost gives access to the firewall. Each process that it starts inherits a
// copy of lock, which stays the caller's; nil: none. What has been added with
// chains that only permit vanishes with Close.
func NewHost(lock *os.File) *Host { return &Host{lock: lock} }

// Close gives the kernel's socket back, and with it the tables that it owns.
func (h *Host) Close() error { return h.tables.close() }

// Add adds rules. With nftables they replace what is left of them, and no packet
// passes in between.
func (h *Host) Add(r Rules) error {
	switch {
	case r.Backend != NFTables:
		return h.addJumped(r.Backend, r.Jumped())
	case r.Transit != "":
		return h.tables.addTransit(r.ID, r.Transit)
	}
	return h.tables.put(r, Refused{})
}

// Lost returns those of rules that are not as Add has left them. With iptables
// it takes a process for each kind.
func (h *Host) Lost(all []Rules) ([]Rules, error) {
	var lost []Rules
	saved := map[Backend]string{}
	for _, r := range all {
		stands, err := h.stands(r, saved)
		if err != nil {
			return nil, err
		}
		if !stands {
			lost = append(lost, r)
		}
	}
	return lost, nil
}

// stands tells whether rules are as they were added. Listings of iptables are
// kept in saved.
func (h *Host) stands(r Rules, saved map[Backend]string) (bool, error) {
	if r.Backend == NFTables {
		return h.tables.stands(r.ID)
	}
	if _, listed := saved[r.Backend]; !listed {
		text, err := h.run(string(r.Backend)+"-save", "")
		if err != nil {
			return false, err
		}
		saved[r.Backend] = text
	}
	return standIn(saved[r.Backend], r.Jumped()), nil
}

// Replace adds rules that Lost has found, whatever is left of them. nftables'
// counters go on from where they are.
func (h *Host) Replace(r Rules) error {
	if r.Backend == NFTables && r.Transit == "" {
		before, err := h.tables.refused(r.ID)
		if err != nil {
			return err
		}
		return h.tables.put(r, before)
	}
	if r.Backend != NFTables {
		if err := h.delJumped(r.Backend, r.Jumped()); err != nil {
			return err
		}
	}
	return h.Add(r)
}

// DelJumped removes chains of iptables.
func (h *Host) DelJumped(b Backend, chains []Jumped) error { return h.delJumped(b, chains) }

// DelTables removes a network's tables of nftables. ErrAbsent: they were not
// there.
func (h *Host) DelTables(id string) error { return h.tables.del(id) }

// DelTransit lets traffic pass through a link again that nftables kept it from.
// ErrAbsent: it did not.
func (h *Host) DelTransit(id, link string) error { return h.tables.delTransit(id, link) }

// Lines are the rules in the words of the backend's own tool.
func (r Rules) Lines() []string {
	if r.Backend == NFTables {
		return r.nftLines()
	}
	return lines(r.Jumped())
}
