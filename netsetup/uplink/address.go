package uplink

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// attributes of linux/if_addr.h that package unix lacks, and what IFA_PROTO says
// of who made an address.
const (
	ifaProto = 11 // IFA_PROTO

	fromRouter = 2 // IFAPROT_KERNEL_RA
)

// readAddresses lists an interface's addresses in the order in which they are to
// be added: the kernel puts an IPv4 address after those that it has, and an IPv6
// one before.
func readAddresses(name string, index uint32) ([]Address, error) {
	var all []Address
	for _, family := range families {
		messages, err := dump(unix.RTM_GETADDR, unix.RTM_NEWADDR, unix.IfAddrmsg{Family: family})
		if err != nil {
			return nil, fmt.Errorf("list addresses: %w", err)
		}
		var of []Address
		for _, m := range messages {
			a, on, err := newAddress(m, name)
			if err != nil {
				return nil, err
			}
			if on == index {
				of = append(of, a)
			}
		}
		if family == unix.AF_INET6 {
			slices.Reverse(of)
		}
		all = append(all, of...)
	}
	return all, nil
}

// newAddress reads a RTM_NEWADDR message and the index that it is about.
func newAddress(message []byte, name string) (a Address, index uint32, err error) {
	var header unix.IfAddrmsg
	if err := binary.Read(bytes.NewReader(message), binary.NativeEndian, &header); err != nil {
		return a, 0, fmt.Errorf("parse address: %w", err)
	}
	attrs, err := attributes(message, unix.SizeofIfAddrmsg)
	if err != nil {
		return a, 0, fmt.Errorf("parse address: %w", err)
	}
	a = Address{Scope: header.Scope, Flags: uint32(header.Flags), Valid: Forever, Preferred: Forever}
	var local, address netip.Addr
	for _, attr := range attrs {
		switch attr.Type {
		case unix.IFA_LOCAL:
			local = addr(attr.Value)
		case unix.IFA_ADDRESS:
			address = addr(attr.Value)
		default:
			a.take(attr, name)
		}
	}
	if !local.IsValid() {
		local = address // IPv6 without peer
	}
	if address != local {
		a.Peer = address
	}
	a.Prefix = netip.PrefixFrom(local, int(header.Prefixlen))
	return a, header.Index, nil
}

func (a *Address) take(attr attribute, name string) {
	switch attr.Type {
	case unix.IFA_BROADCAST:
		a.Broadcast = addr(attr.Value)
	case unix.IFA_LABEL:
		if label := nl.BytesToString(attr.Value); label != name {
			a.Label = label
		}
	case unix.IFA_FLAGS:
		a.Flags = number(attr.Value)
	case unix.IFA_RT_PRIORITY:
		a.Metric = number(attr.Value)
	case ifaProto:
		a.Origin = octet(attr.Value)
	case unix.IFA_CACHEINFO: // struct ifa_cacheinfo: preferred, then valid
		if len(attr.Value) >= 8 {
			a.Preferred, a.Valid = number(attr.Value), number(attr.Value[4:])
		}
	}
}

// message is the request that adds the address, or takes it away.
func (a Address) message(name string, index, flags uint32) []byte {
	local := a.Prefix.Addr()
	header := unix.IfAddrmsg{Family: unix.AF_INET, Prefixlen: uint8(a.Prefix.Bits()), Scope: a.Scope, Index: index}
	if local.Is6() {
		header.Family = unix.AF_INET6
	}
	peer := a.Peer
	if !peer.IsValid() {
		peer = local
	}
	b := appendAttr(encode(header), unix.IFA_LOCAL, local.AsSlice())
	b = appendAttr(b, unix.IFA_ADDRESS, peer.AsSlice())
	if a.Broadcast.IsValid() {
		b = appendAttr(b, unix.IFA_BROADCAST, a.Broadcast.AsSlice())
	}
	if local.Is4() {
		label := a.Label
		if label == "" {
			label = name
		}
		b = appendAttr(b, unix.IFA_LABEL, nl.ZeroTerminated(label))
	}
	b = appendAttr(b, unix.IFA_FLAGS, nl.Uint32Attr(flags))
	if a.Metric != 0 {
		b = appendAttr(b, unix.IFA_RT_PRIORITY, nl.Uint32Attr(a.Metric))
	}
	if a.Origin != 0 {
		b = appendAttr(b, ifaProto, []byte{a.Origin})
	}
	return appendAttr(b, unix.IFA_CACHEINFO, slices.Concat(nl.Uint32Attr(a.Preferred), nl.Uint32Attr(a.Valid), make([]byte, 8)))
}

// PutAddress adds an address to an interface, or gives it lifetimes and flags
// anew where it is there. An IPv6 address can be used at once, unless it was just
// being probed for: it was unique on this wire before.
func PutAddress(name string, index int, a Address) error {
	flags := a.Flags & settableFlags
	if a.Prefix.Addr().Is6() && a.Flags&unix.IFA_F_TENTATIVE == 0 {
		quick := a.message(name, uint32(index), flags|unix.IFA_F_NODAD)
		err := request(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, quick)
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	return request(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, a.message(name, uint32(index), flags))
}

// DelAddress takes an address from an interface; EADDRNOTAVAIL where it has none
// such.
func DelAddress(name string, index int, a Address) error {
	return request(unix.RTM_DELADDR, 0, a.message(name, uint32(index), 0))
}
