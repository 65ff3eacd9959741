package uplink

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// encode is a netlink header as the kernel has it.
func encode(header any) []byte {
	var b bytes.Buffer
	if err := binary.Write(&b, binary.NativeEndian, header); err != nil {
		panic(err) // not of fixed size
	}
	return b.Bytes()
}

// appendAttr appends an attribute, aligned to 4 bytes (netlink(7)).
func appendAttr(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func addr(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}

func number(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

func octet(b []byte) uint8 {
	if len(b) == 0 {
		return 0
	}
	return b[0]
}

// raw is a message's body.
type raw []byte

func (r raw) Len() int          { return len(r) }
func (r raw) Serialize() []byte { return r }

// request asks the kernel for a change.
func request(kind, flags int, body []byte) error {
	r := nl.NewNetlinkRequest(kind, flags|unix.NLM_F_ACK)
	r.AddData(raw(body))
	_, err := r.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// dump reads a table of the kernel's, again where a change interrupted it.
func dump(get int, answer uint16, header any) ([][]byte, error) {
	var all [][]byte
	var err error
	for range 16 {
		r := nl.NewNetlinkRequest(get, unix.NLM_F_DUMP)
		r.AddData(raw(encode(header)))
		all, err = r.Execute(unix.NETLINK_ROUTE, answer)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// attribute is one of a message's (rtnetlink(7), struct rtattr).
type attribute struct {
	Type  uint16 // with the kernel's flags
	Value []byte
}

// kind is the attribute's number without its flags.
func kind(a attribute) uint16 { return a.Type &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER) }

// parseAttrs reads attributes, each aligned to 4 bytes.
func parseAttrs(b []byte) ([]attribute, error) {
	var all []attribute
	for len(b) >= unix.SizeofRtAttr {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofRtAttr || size > len(b) {
			return nil, fmt.Errorf("parse attribute: %d bytes of %d", size, len(b))
		}
		all = append(all, attribute{binary.NativeEndian.Uint16(b[2:]), b[unix.SizeofRtAttr:size]})
		b = b[min(len(b), (size+3)&^3):]
	}
	return all, nil
}

// attributes are those behind a header.
func attributes(message []byte, header int) ([]attribute, error) {
	if len(message) < header {
		return nil, fmt.Errorf("parse message: %d bytes", len(message))
	}
	return parseAttrs(message[header:])
}

// families are those that an interface has something of.
var families = []uint8{unix.AF_INET, unix.AF_INET6}
