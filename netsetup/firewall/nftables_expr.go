package firewall

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// interfaceName is the size of an interface's name in a register (IFNAMSIZ).
const interfaceName = unix.IFNAMSIZ

// Registers of the virtual machine (NFT_REG_1, NFT_REG_2): 16 bytes each, one
// after the other, so that a lookup of two names starts at the first.
const (
	firstRegister  = unix.NFT_REG_1
	secondRegister = unix.NFT_REG_2
)

// States of a connection as `ct state` has them (NF_CT_STATE_BIT in
// linux/netfilter/nf_conntrack_common.h), and the mark of DNAT in `ct status`.
const (
	stateEstablished = 1 << 1
	stateRelated     = 1 << 2
	stateNew         = 1 << 3
	statusDstNAT     = 1 << 5 // IPS_DST_NAT
)

// expressions are what the kernel runs for a rule.
func (r nftRule) expressions() []expr.Any {
	e := addressMatch(r.Src, 12)
	e = append(e, addressMatch(r.Dst, 16)...) // offsets in an IPv4 header
	switch {
	case r.In == TransitLinks:
		e = append(e, meta(expr.MetaKeyIIFNAME, firstRegister), &expr.Lookup{SourceRegister: firstRegister, SetName: transitSet.name})
	case r.In != "":
		e = append(e, linkMatch(expr.MetaKeyIIFNAME, expr.CmpOpEq, r.In)...)
	}
	if r.Out != "" {
		e = append(e, linkMatch(expr.MetaKeyOIFNAME, expr.CmpOpEq, r.Out)...)
	}
	if r.NotOut != "" {
		e = append(e, linkMatch(expr.MetaKeyOIFNAME, expr.CmpOpNeq, r.NotOut)...)
	}
	if r.Hairpin {
		e = append(e, meta(expr.MetaKeyIIFNAME, firstRegister), meta(expr.MetaKeyOIFNAME, secondRegister),
			&expr.Lookup{SourceRegister: firstRegister, SetName: hairpinSet.name})
	}
	e = append(e, r.protocolMatch()...)
	e = append(e, r.State.match()...)
	if r.Counts != "" {
		e = append(e, r.Counts.expression())
	}
	return append(e, r.verdict()...)
}

func meta(key expr.MetaKey, register uint32) *expr.Meta {
	return &expr.Meta{Key: key, Register: register}
}

func compare(op expr.CmpOp, data []byte) *expr.Cmp {
	return &expr.Cmp{Op: op, Register: firstRegister, Data: data}
}

// linkMatch compares a name with its padding, or only what is before a +.
func linkMatch(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	data := linkKey(name)
	if prefix, ok := strings.CutSuffix(name, "+"); ok {
		data = []byte(prefix)
	}
	return []expr.Any{meta(key, firstRegister), compare(op, data)}
}

// linkKey is a name as registers and sets have it.
func linkKey(name string) []byte {
	key := make([]byte, interfaceName)
	copy(key, name)
	return key
}

func addressMatch(p netip.Prefix, offset uint32) []expr.Any {
	if !p.IsValid() {
		return nil
	}
	e := []expr.Any{&expr.Payload{DestRegister: firstRegister, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4}}
	if !p.IsSingleIP() {
		e = append(e, &expr.Bitwise{SourceRegister: firstRegister, DestRegister: firstRegister, Len: 4,
			Mask: net.CIDRMask(p.Bits(), 32), Xor: make([]byte, 4)})
	}
	return append(e, compare(expr.CmpOpEq, p.Masked().Addr().AsSlice()))
}

var protocols = map[string]byte{"icmp": unix.IPPROTO_ICMP, "tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP}

func (m Match) protocolMatch() []expr.Any {
	if m.Proto == "" {
		return nil
	}
	e := []expr.Any{meta(expr.MetaKeyL4PROTO, firstRegister), compare(expr.CmpOpEq, []byte{protocols[m.Proto]})}
	if m.Port != 0 {
		e = append(e, &expr.Payload{DestRegister: firstRegister, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			compare(expr.CmpOpEq, portKey(m.Port)))
	}
	return e
}

func portKey(port int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(port)) }

func (s State) match() []expr.Any {
	switch s {
	case Replies:
		return tracked(expr.CtKeySTATE, stateEstablished|stateRelated, expr.CmpOpNeq)
	case Fresh:
		return append(tracked(expr.CtKeySTATE, stateNew, expr.CmpOpNeq), tracked(expr.CtKeySTATUS, statusDstNAT, expr.CmpOpEq)...)
	}
	return nil
}

// tracked compares bits of connection tracking with zero.
func tracked(key expr.CtKey, bits uint32, op expr.CmpOp) []expr.Any {
	zero := make([]byte, 4)
	return []expr.Any{
		&expr.Ct{Key: key, Register: firstRegister},
		&expr.Bitwise{SourceRegister: firstRegister, DestRegister: firstRegister, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: zero},
		compare(op, zero),
	}
}

func (c Counter) expression() expr.Any {
	return &expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: string(c)}
}

func (r nftRule) verdict() []expr.Any {
	if r.jump != "" {
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: r.jump}}
	}
	switch r.Then {
	case Accept:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	case Drop:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
	case Return:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}
	case Reject: // as iptables' REJECT does
		return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 3}}
	case Redirect:
		return []expr.Any{
			&expr.Immediate{Register: firstRegister, Data: portKey(r.ToPort)},
			&expr.Redir{RegisterProtoMin: firstRegister, Flags: unix.NF_NAT_RANGE_PROTO_SPECIFIED},
		}
	case Masquerade:
		return []expr.Any{&expr.Masq{}}
	}
	panic("firewall: verdict " + string(r.Then)) // a rule of this package's own
}

// nftSet is a set as the library has it; messages of one batch refer to it by id.
func (s set) nftSet(t *nftables.Table, id uint32) *nftables.Set {
	n := &nftables.Set{Table: t, Name: s.name, ID: id, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}
	if s.pair {
		n.KeyType, n.Concatenation = nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIFName), true
	}
	return n
}

// element is the key that a link has in a set.
func (s set) element(link string) []nftables.SetElement {
	key := linkKey(link)
	if s.pair {
		key = append(key, key...)
	}
	return []nftables.SetElement{{Key: key}}
}
