package firewall

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// tables are nftables' of the network namespace. The socket is open for the life
// of the process: the kernel removes the tables that it owns when it closes.
type tables struct {
	mu     sync.Mutex
	socket *netlink.Conn // nil until it is needed
	conn   *nftables.Conn
	owned  map[string]bool     // tables of this socket
	prints map[string][32]byte // of lasting tables, as they were left
}

// open opens the socket on first use. The caller holds mu.
func (t *tables) open() (err error) {
	if t.socket != nil {
		return nil
	}
	keep := func(c *netlink.Conn) error { t.socket = c; return nil }
	t.conn, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(keep))
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	t.owned, t.prints = map[string]bool{}, map[string][32]byte{}
	return nil
}

func (t *tables) close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.socket == nil {
		return nil
	}
	return t.socket.Close()
}

func table(name string) *nftables.Table {
	return &nftables.Table{Name: name, Family: nftables.TableFamilyIPv4}
}

// put adds the tables of a network, or replaces them, in one transaction. Its
// counters begin with what was refused before.
func (t *tables) put(r Rules, before Refused) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.open(); err != nil {
		return err
	}
	all := map[string]*nftables.Table{}
	for i, name := range r.tables() {
		all[name] = table(name)
		if i > 0 {
			if err := t.own(name); err != nil {
				return err
			}
			t.conn.FlushTable(all[name])
			continue
		}
		// Adding it first makes sure that there is one to delete.
		t.conn.AddTable(all[name])
		t.conn.DelTable(all[name])
		t.conn.AddTable(all[name])
	}
	for i, s := range r.sets() {
		var elements []nftables.SetElement
		for _, link := range r.Links {
			elements = append(elements, s.element(link)...)
		}
		if err := t.conn.AddSet(s.nftSet(all[Table(r.ID)], uint32(i+1)), elements); err != nil {
			return fmt.Errorf("add set %s: %w", s.name, err)
		}
	}
	for _, c := range r.counters() {
		t.conn.AddObj(counterObject(all[Table(r.ID)], c, before))
	}
	for _, c := range r.nftChains() {
		t.addChain(all[c.table], c)
	}
	if err := t.flush(); err != nil {
		return fmt.Errorf("add table %s: %w", Table(r.ID), err)
	}
	return t.remember(r.ID)
}

// addChain adds a chain with its rules to the batch.
func (t *tables) addChain(in *nftables.Table, c nftChain) {
	chain := &nftables.Chain{Name: c.name, Table: in}
	if c.base != nil {
		chain.Hooknum = hooknums[Hook(c.name)]
		chain.Priority = nftables.ChainPriorityRef(nftables.ChainPriority(c.base.priority))
		chain.Type = nftables.ChainType(c.base.kind)
	}
	t.conn.AddChain(chain)
	for _, r := range c.rules {
		t.conn.AddRule(&nftables.Rule{Table: in, Chain: chain, Exprs: r.expressions()})
	}
}

// flush commits the batch. An error of the kernel is told once, not for each
// message that could not be done for it.
func (t *tables) flush() error {
	err := t.conn.Flush()
	for _, e := range []error{unix.ENOENT, unix.EEXIST, unix.EOPNOTSUPP} {
		if errors.Is(err, e) {
			return e
		}
	}
	return err
}

// ownLimit bounds the wait for the end of a killed keeper's socket, which may
// come a moment after the end of its lock.
const ownLimit = 10 * time.Second

// own makes an empty table that this socket owns. It replaces one without an owner,
// which is no keeper's, as put does with the lasting one.
func (t *tables) own(name string) error {
	if t.owned[name] {
		return nil
	}
	add, err := newOwnedTable(name)
	if err != nil {
		return err
	}
	del, err := delTable(name)
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(ownLimit); ; time.Sleep(time.Millisecond) {
		err = batch(t.socket, true, add)
		if errors.Is(err, unix.EOPNOTSUPP) && batch(t.socket, true, del) == nil { // it was there, without one
			err = batch(t.socket, true, add)
		}
		if !errors.Is(err, unix.EPERM) || time.Now().After(deadline) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("add table %s: %w", name, err)
	}
	t.owned[name] = true
	return nil
}

// addTransit adds a link to those that are kept from transit.
func (t *tables) addTransit(id, link string) error {
	return t.changeTransit(id, link, func(s *nftables.Set, e []nftables.SetElement) error { return t.conn.SetAddElements(s, e) })
}

// delTransit takes a link from them; ErrAbsent where it is none.
func (t *tables) delTransit(id, link string) error {
	return t.changeTransit(id, link, func(s *nftables.Set, e []nftables.SetElement) error { return t.conn.SetDeleteElements(s, e) })
}

func (t *tables) changeTransit(id, link string, change func(*nftables.Set, []nftables.SetElement) error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.open(); err != nil {
		return err
	}
	for i, s := range []set{transitSet, hairpinSet} {
		if err := change(s.nftSet(table(Table(id)), uint32(i+1)), s.element(link)); err != nil {
			return fmt.Errorf("change set %s: %w", s.name, err)
		}
	}
	err := t.flush()
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("link %s of table %s is %w", link, Table(id), ErrAbsent)
	}
	if err != nil {
		return fmt.Errorf("change table %s: %w", Table(id), err)
	}
	return t.remember(id)
}

// del removes the tables of a network. One that another process owns goes with
// that process.
func (t *tables) del(id string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.open(); err != nil {
		return err
	}
	delete(t.prints, id)
	names := []string{Table(id)}
	if name := ownedTable(id); t.owned[name] {
		delete(t.owned, name)
		names = append(names, name)
	}
	for _, name := range names {
		t.conn.DelTable(table(name))
	}
	err := t.flush()
	if errors.Is(err, unix.ENOENT) && len(names) > 1 { // somebody was faster with the first
		t.conn.DelTable(table(names[1]))
		err = t.flush()
	}
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("table %s is %w", names[0], ErrAbsent)
	}
	if err != nil {
		return fmt.Errorf("delete table %s: %w", names[0], err)
	}
	return nil
}

// stands tells whether the lasting table is as it was left. The other one is
// nobody else's to change.
func (t *tables) stands(id string) (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	want, ok := t.prints[id]
	if !ok {
		return false, nil
	}
	for range 2 { // a listing that somebody's change interrupts may miss a part
		now, err := t.print(id)
		if err != nil || now == want {
			return err == nil, err
		}
	}
	return false, nil
}

func (t *tables) remember(id string) (err error) {
	t.prints[id], err = t.print(id)
	return err
}

// print is a digest of all that is in a lasting table. Whatever is added anew
// has another handle.
func (t *tables) print(id string) (sum [32]byte, err error) {
	name := Table(id)
	var all [][]byte
	list := func(kind int, attributes ...netlink.Attribute) {
		if err == nil {
			var some [][]byte
			some, err = dump(t.socket, kind, name, attributes...)
			all = append(all, some...)
		}
	}
	list(unix.NFT_MSG_GETTABLE)
	list(unix.NFT_MSG_GETCHAIN)
	list(unix.NFT_MSG_GETRULE)
	list(unix.NFT_MSG_GETSET)
	if errors.Is(err, unix.ENOENT) || err == nil && len(all) == 0 {
		return sum, nil // it is gone
	}
	if err != nil {
		return sum, fmt.Errorf("list table %s: %w", name, err)
	}
	elements, err := t.elements(id)
	if err != nil {
		return sum, fmt.Errorf("list sets of table %s: %w", name, err)
	}
	return sha256.Sum256(slices.Concat(append(all, elements...)...)), nil
}

// elements are those of the table's sets, sorted: the kernel has them in any
// order.
func (t *tables) elements(id string) ([][]byte, error) {
	var all [][]byte
	sets, err := t.conn.GetSets(table(Table(id)))
	if err != nil {
		return nil, err
	}
	for _, s := range sets {
		elements, err := t.conn.GetSetElements(s)
		if err != nil {
			return nil, err
		}
		for _, e := range elements {
			all = append(all, e.Key)
		}
	}
	slices.SortFunc(all, bytes.Compare)
	return all, nil
}
