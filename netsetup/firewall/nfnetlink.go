package firewall

import (
	"encoding/binary"
	"fmt"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// What the nftables library does not know is said in messages of our own: the
// flag of an owned table, and a transaction that is only checked.

// message is one of nf_tables', about the IPv4 family.
func message(kind int, flags netlink.HeaderFlags, attributes []netlink.Attribute) (netlink.Message, error) {
	data, err := netlink.MarshalAttributes(attributes)
	if err != nil {
		return netlink.Message{}, fmt.Errorf("encode nftables message: %w", err)
	}
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind), Flags: netlink.Request | flags},
		Data:   append(family(unix.NFPROTO_IPV4, 0), data...),
	}, nil
}

// family is the header that netfilter's messages begin with (nfgenmsg in
// linux/netfilter/nfnetlink.h).
func family(f byte, resource uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{f, unix.NFNETLINK_V0}, resource)
}

func text(kind uint16, value string) netlink.Attribute {
	return netlink.Attribute{Type: kind, Data: append([]byte(value), 0)}
}

func number(kind uint16, value uint32) netlink.Attribute {
	return netlink.Attribute{Type: kind, Data: binary.BigEndian.AppendUint32(nil, value)}
}

func nested(kind uint16, attributes ...netlink.Attribute) netlink.Attribute {
	data, _ := netlink.MarshalAttributes(attributes) // ours are short enough
	return netlink.Attribute{Type: kind | unix.NLA_F_NESTED, Data: data}
}

// tableOwner is NFT_TABLE_F_OWNER: who makes the table alone may change it, and
// the kernel removes it with that socket.
const tableOwner = 2

func newOwnedTable(name string) (netlink.Message, error) {
	return message(unix.NFT_MSG_NEWTABLE, netlink.Create|netlink.Acknowledge,
		[]netlink.Attribute{text(unix.NFTA_TABLE_NAME, name), number(unix.NFTA_TABLE_FLAGS, tableOwner)})
}

func delTable(name string) (netlink.Message, error) {
	return message(unix.NFT_MSG_DELTABLE, netlink.Acknowledge, []netlink.Attribute{text(unix.NFTA_TABLE_NAME, name)})
}

// batch sends messages as one transaction. Without commit the kernel checks it
// and forgets it, as for `nft --check`: the message that would end it is missing.
// After an error the socket may hold answers that nobody has read.
func batch(c *netlink.Conn, commit bool, messages ...netlink.Message) error {
	bound := func(kind int) netlink.Message {
		return netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request},
			Data: family(unix.NFPROTO_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)}
	}
	all := append([]netlink.Message{bound(unix.NFNL_MSG_BATCH_BEGIN)}, messages...)
	if commit {
		all = append(all, bound(unix.NFNL_MSG_BATCH_END))
	}
	if _, err := c.SendMessages(all); err != nil {
		return err
	}
	for range messages { // each is acknowledged, unless an error ends it all
		if _, err := c.Receive(); err != nil {
			return err
		}
	}
	return nil
}

// probe asks the kernel for what not every one with nftables can: a table with
// an owner, NAT, masquerade, redirect, counters. Nothing changes. In a hurry the
// transaction is carried out, and takes back itself what it adds: the kernel
// waits for a grace period before it forgets one that was only checked. It does
// so, too, before it closes a socket, hence no other one is opened for this.
func (t *tables) probe(hurry bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.open(); err != nil {
		return err
	}
	name := fmt.Sprintf("%sprobe_%d", tablePrefix, os.Getpid())
	messages, err := probeMessages(name)
	if err != nil {
		return err
	}
	undo, err := delTable(name)
	if err != nil {
		return err
	}
	if err := batch(t.socket, hurry, append(messages, undo)...); err != nil {
		t.socket.Close()
		t.socket = nil
		return err
	}
	return nil
}

func probeMessages(table string) ([]netlink.Message, error) {
	owned, err := newOwnedTable(table)
	if err != nil {
		return nil, err
	}
	counter, err := message(unix.NFT_MSG_NEWOBJ, netlink.Create|netlink.Acknowledge, []netlink.Attribute{
		text(unix.NFTA_OBJ_TABLE, table), text(unix.NFTA_OBJ_NAME, string(FromGuests)),
		number(unix.NFTA_OBJ_TYPE, unix.NFT_OBJECT_COUNTER), nested(unix.NFTA_OBJ_DATA),
	})
	if err != nil {
		return nil, err
	}
	all := []netlink.Message{owned, counter}
	for hook, e := range map[Hook]expr.Any{Postrouting: &expr.Masq{}, Prerouting: &expr.Redir{}} {
		hooknum := *hooknums[hook]
		chain, err := message(unix.NFT_MSG_NEWCHAIN, netlink.Create|netlink.Acknowledge, []netlink.Attribute{
			text(unix.NFTA_CHAIN_TABLE, table), text(unix.NFTA_CHAIN_NAME, string(hook)), text(unix.NFTA_CHAIN_TYPE, "nat"),
			nested(unix.NFTA_CHAIN_HOOK, number(unix.NFTA_HOOK_HOOKNUM, uint32(hooknum)), number(unix.NFTA_HOOK_PRIORITY, 0)),
		})
		if err != nil {
			return nil, err
		}
		counts, err := element(FromGuests.expression())
		if err != nil {
			return nil, err
		}
		does, err := element(e)
		if err != nil {
			return nil, err
		}
		rule, err := message(unix.NFT_MSG_NEWRULE, netlink.Create|netlink.Append|netlink.Acknowledge, []netlink.Attribute{
			text(unix.NFTA_RULE_TABLE, table), text(unix.NFTA_RULE_CHAIN, string(hook)),
			nested(unix.NFTA_RULE_EXPRESSIONS, counts, does),
		})
		if err != nil {
			return nil, err
		}
		all = append(all, chain, rule)
	}
	return all, nil
}

// element is an expression in a rule's list of them.
func element(e expr.Any) (netlink.Attribute, error) {
	data, err := expr.Marshal(unix.NFPROTO_IPV4, e)
	if err != nil {
		return netlink.Attribute{}, fmt.Errorf("encode nftables expression: %w", err)
	}
	return netlink.Attribute{Type: unix.NFTA_LIST_ELEM | unix.NLA_F_NESTED, Data: data}, nil
}

var hooknums = map[Hook]*nftables.ChainHook{
	Forward: nftables.ChainHookForward, Input: nftables.ChainHookInput, Prerouting: nftables.ChainHookPrerouting,
	Postrouting: nftables.ChainHookPostrouting, Leaving: nftables.ChainHookPostrouting,
}

// dump lists objects of a kind that belong to a table, as the kernel tells them
// but for the generation of the rule set, which changes with every change of
// anybody.
func dump(c *netlink.Conn, kind int, table string, attributes ...netlink.Attribute) ([][]byte, error) {
	ask, err := message(kind, netlink.Dump, append([]netlink.Attribute{text(unix.NFTA_TABLE_NAME, table)}, attributes...))
	if err != nil {
		return nil, err
	}
	answers, err := c.Execute(ask)
	if err != nil {
		return nil, err
	}
	const header = 4 // nfgenmsg
	var all [][]byte
	for _, m := range answers {
		if len(m.Data) < header {
			continue
		}
		d, err := netlink.NewAttributeDecoder(m.Data[header:])
		if err != nil {
			return nil, err
		}
		for d.Next() {
			if d.Type() == unix.NFTA_TABLE_NAME && d.String() == table { // the same number in all kinds
				all = append(all, m.Data[header:])
			}
		}
		if err := d.Err(); err != nil {
			return nil, err
		}
	}
	return all, nil
}
