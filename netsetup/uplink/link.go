package uplink

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Read reads what IP has on an interface.
func Read(name string, index int) (s State, err error) {
	if s.Addresses, err = readAddresses(name, uint32(index)); err != nil {
		return s, err
	}
	if s.Routes, err = readRoutes(name, uint32(index)); err != nil {
		return s, err
	}
	s.Neighbours, err = readNeighbours(index, Neighbour.lasting)
	return s, err
}

func readRoutes(name string, index uint32) ([]Route, error) {
	var all []Route
	for _, family := range families {
		messages, err := dump(unix.RTM_GETROUTE, unix.RTM_NEWROUTE, unix.RtMsg{Family: family})
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, m := range messages {
			routes, err := newRoutes(m, name, index)
			if err != nil {
				return nil, err
			}
			all = append(all, routes...)
		}
	}
	return all, nil
}

// PutRoute adds a route through an interface, behind those of the same
// destination and metric that are there. Nothing happens where it is there.
func PutRoute(name string, index int, r Route) error {
	if r.Advertised {
		return putAdvertised(name, index, r)
	}
	message, err := r.on(uint32(index))
	if err != nil {
		return err
	}
	err = request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, message)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// DelRoute takes a route through an interface away; ESRCH where it is not there.
func DelRoute(index int, r Route) error {
	r.Expires = 0
	message, err := r.on(uint32(index))
	if err != nil {
		return err
	}
	err = request(unix.RTM_DELROUTE, 0, message)
	if !r.Advertised {
		return err
	}
	message, placeholderErr := r.placeholder(uint32(index))
	if placeholderErr == nil {
		placeholderErr = request(unix.RTM_DELROUTE, 0, message)
	}
	if err == nil || placeholderErr == nil {
		return nil
	}
	return err
}

// Sorted lists the routes in an order in which they can be added: those first
// that lead to others' gateways.
func (s State) Sorted() []Route {
	sorted := slices.Clone(s.Routes)
	slices.SortStableFunc(sorted, func(a, b Route) int {
		switch x, y := a.gatewayless(), b.gatewayless(); {
		case x && !y:
			return -1
		case y && !x:
			return 1
		}
		return 0
	})
	return sorted
}

// Surplus are the routes of now that the kernel made for addresses and that
// nobody asked for: neither wanted has them nor what was there before.
func Surplus(now, before, wanted State) []Route {
	var all []Route
	for _, r := range now.Routes {
		if r.fromKernel() && !before.HasRoute(r) && !wanted.HasRoute(r) {
			all = append(all, r)
		}
	}
	return all
}

// ndMsg is struct ndmsg of linux/neighbour.h.
type ndMsg struct {
	Family uint8
	_      [3]uint8
	Index  int32
	State  uint16
	Flags  uint8
	Type   uint8
}

const (
	sizeofNdMsg = 12
	ndaProtocol = 12 // NDA_PROTOCOL
)

// lasting tells entries that never age.
func (n Neighbour) lasting() bool {
	return n.State&unix.NUD_PERMANENT != 0 || n.Flags&unix.NTF_PROXY != 0
}

func readNeighbours(index int, wanted func(Neighbour) bool) ([]Neighbour, error) {
	var all []Neighbour
	for _, family := range families {
		for _, flags := range []uint8{0, unix.NTF_PROXY} {
			messages, err := dump(unix.RTM_GETNEIGH, unix.RTM_NEWNEIGH, ndMsg{Family: family, Flags: flags})
			if err != nil {
				return nil, fmt.Errorf("list neighbours: %w", err)
			}
			for _, m := range messages {
				n, on, err := newNeighbour(m)
				if err != nil {
					return nil, err
				}
				if on == index && wanted(n) {
					all = append(all, n)
				}
			}
		}
	}
	return all, nil
}

// ShareNeighbours tells an interface what another one knows of their common
// neighbours, so that it need not ask: the answer would come to the other one. It
// is verified by and by, as everything stale is.
func ShareNeighbours(from, to int) error {
	const known = unix.NUD_REACHABLE | unix.NUD_STALE | unix.NUD_DELAY | unix.NUD_PROBE
	all, err := readNeighbours(from, func(n Neighbour) bool { return !n.lasting() && n.State&known != 0 })
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range all {
		n.State, n.Flags = unix.NUD_STALE, 0
		err := request(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_EXCL, n.message(to))
		if !errors.Is(err, unix.EEXIST) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func newNeighbour(message []byte) (n Neighbour, index int, err error) {
	var header ndMsg
	if err := binary.Read(bytes.NewReader(message), binary.NativeEndian, &header); err != nil {
		return n, 0, fmt.Errorf("parse neighbour: %w", err)
	}
	attrs, err := attributes(message, sizeofNdMsg)
	if err != nil {
		return n, 0, fmt.Errorf("parse neighbour: %w", err)
	}
	n.State, n.Flags = header.State, header.Flags
	for _, a := range attrs {
		switch a.Type {
		case unix.NDA_DST:
			n.IP = addr(a.Value)
		case unix.NDA_LLADDR:
			n.MAC = net.HardwareAddr(a.Value)
		case ndaProtocol:
			n.Origin = octet(a.Value)
		}
	}
	return n, int(header.Index), nil
}

// message is the request that adds the neighbour.
func (n Neighbour) message(index int) []byte {
	header := ndMsg{Family: unix.AF_INET, Index: int32(index), State: n.State, Flags: n.Flags}
	if n.IP.Is6() {
		header.Family = unix.AF_INET6
	}
	b := appendAttr(encode(header), unix.NDA_DST, n.IP.AsSlice())
	if len(n.MAC) > 0 {
		b = appendAttr(b, unix.NDA_LLADDR, n.MAC)
	}
	if n.Origin != 0 {
		b = appendAttr(b, ndaProtocol, []byte{n.Origin})
	}
	return b
}

// PutNeighbour adds a neighbour to an interface, or sets it anew.
func PutNeighbour(index int, n Neighbour) error {
	return request(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, n.message(index))
}

// Rule is a policy rule that names an interface, as the kernel's own message
// without that name.
type Rule struct {
	Text string `json:"text"`
	Raw  []byte `json:"raw"` // struct fib_rule_hdr and its attributes
	In   bool   `json:"in,omitempty"`
	Out  bool   `json:"out,omitempty"`
}

// String is the rule as ip(8) writes it, without the interface.
func (r Rule) String() string { return r.Text }

// AddRule adds the rule for an interface behind all of its priority; nothing
// happens where there is one such.
func AddRule(name string, r Rule) error {
	err := request(unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, r.on(name))
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// DelRule takes the rule for an interface away; ENOENT where there is none such.
func DelRule(name string, r Rule) error { return request(unix.RTM_DELRULE, 0, r.on(name)) }

func (r Rule) on(name string) []byte {
	b := slices.Clone(r.Raw)
	if r.In {
		b = appendAttr(b, unix.FRA_IIFNAME, nl.ZeroTerminated(name))
	}
	if r.Out {
		b = appendAttr(b, unix.FRA_OIFNAME, nl.ZeroTerminated(name))
	}
	return b
}
