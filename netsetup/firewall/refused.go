package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Refused is how many packets the rules of a network have rejected or dropped
// since they are there.
type Refused struct {
	FromGuests uint64 `json:"from_guests"` // to the host, another network or further
	ToGuests   uint64 `json:"to_guests"`   // from outside
}

// Counter is what a rule adds its packets to.
type Counter string

const (
	FromGuests Counter = "from_guests"
	ToGuests   Counter = "to_guests"
)

// Refused reads the counters of a network's rules, wherever they are. With
// iptables it takes a process for each kind.
func (h *Host) Refused(id string, backends []Backend) (Refused, error) {
	var sum Refused
	var errs []error
	for _, b := range backends {
		var r Refused
		var err error
		if b == NFTables {
			r, err = h.tables.refused(id)
		} else {
			r, err = h.refusedJumped(b, id)
		}
		sum.FromGuests += r.FromGuests
		sum.ToGuests += r.ToGuests
		errs = append(errs, err)
	}
	return sum, errors.Join(errs...)
}

func (h *Host) refusedJumped(b Backend, id string) (Refused, error) {
	saved, err := h.run(string(b)+"-save", "", "-c", "-t", "filter")
	if err != nil {
		return Refused{}, err
	}
	return parseRefused(saved, id), nil
}

// parseRefused adds up the counters of the rules that reject, in a listing of
// iptables-save -c. What goes to the guests is told by its interface.
func parseRefused(saved, id string) (r Refused) {
	const target = " -j REJECT"
	for line := range strings.Lines(saved) {
		words := strings.Fields(line)
		if len(words) < 3 || words[1] != "-A" || !strings.HasPrefix(words[2], chainPrefix+id+"-") || !strings.Contains(line, target) {
			continue
		}
		text, _, _ := strings.Cut(strings.TrimPrefix(words[0], "["), ":")
		packets, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			continue
		}
		if strings.Contains(line, " -o ") {
			r.ToGuests += packets
		} else {
			r.FromGuests += packets
		}
	}
	return r
}

// counters are those that the lasting table has.
func (r Rules) counters() []Counter {
	for _, c := range r.Chains {
		for _, rule := range c.Rules {
			if rule.Counts != "" {
				return []Counter{FromGuests, ToGuests}
			}
		}
	}
	return nil
}

// counterObject is a counter as the library has it, with what was counted
// before.
func counterObject(t *nftables.Table, c Counter, before Refused) *nftables.CounterObj {
	o := &nftables.CounterObj{Table: t, Name: string(c), Packets: before.FromGuests}
	if c == ToGuests {
		o.Packets = before.ToGuests
	}
	return o
}

func (t *tables) refused(id string) (Refused, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.open(); err != nil {
		return Refused{}, err
	}
	return t.readRefused(id)
}

// readRefused reads the lasting table's counters; of a table that is not there
// they are zero. The caller holds mu.
func (t *tables) readRefused(id string) (r Refused, err error) {
	objects, err := dump(t.socket, unix.NFT_MSG_GETOBJ, Table(id))
	if errors.Is(err, unix.ENOENT) {
		return r, nil
	}
	if err != nil {
		return r, fmt.Errorf("read counters of table %s: %w", Table(id), err)
	}
	for _, o := range objects {
		name, packets, err := parseCounter(o)
		if err != nil {
			return r, fmt.Errorf("read counters of table %s: %w", Table(id), err)
		}
		switch name {
		case FromGuests:
			r.FromGuests = packets
		case ToGuests:
			r.ToGuests = packets
		}
	}
	return r, nil
}

// parseCounter reads what the kernel says of an object.
func parseCounter(object []byte) (name Counter, packets uint64, err error) {
	d, err := netlink.NewAttributeDecoder(object)
	if err != nil {
		return "", 0, err
	}
	d.ByteOrder = binary.BigEndian
	for d.Next() {
		switch d.Type() {
		case unix.NFTA_OBJ_NAME:
			name = Counter(d.String())
		case unix.NFTA_OBJ_DATA:
			d.Nested(func(n *netlink.AttributeDecoder) error {
				for n.Next() {
					if n.Type() == unix.NFTA_COUNTER_PACKETS {
						packets = n.Uint64()
					}
				}
				return nil
			})
		}
	}
	return name, packets, d.Err()
}
