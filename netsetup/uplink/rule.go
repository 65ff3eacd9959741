package uplink

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ruleHeader is struct fib_rule_hdr of linux/fib_rules.h.
type ruleHeader struct {
	Family         uint8
	DstLen, SrcLen uint8
	TOS            uint8
	Table          uint8
	_, _           uint8
	Action         uint8
	Flags          uint32
}

const sizeofRuleHeader = 12

// listed is a policy rule as it was found.
type listed struct {
	Rule
	priority uint32
	inverted bool
}

func (l listed) names() bool { return l.In || l.Out }

// readRules lists all policy rules of a family, in their order, with those that
// name the interface marked.
func readRules(family uint8, name string) ([]listed, error) {
	messages, err := dump(unix.RTM_GETRULE, unix.RTM_NEWRULE, ruleHeader{Family: family})
	if err != nil {
		return nil, fmt.Errorf("list policy rules: %w", err)
	}
	var all []listed
	for _, m := range messages {
		l, err := newRule(m, name)
		if err != nil {
			return nil, err
		}
		all = append(all, l)
	}
	return all, nil
}

func newRule(message []byte, name string) (l listed, err error) {
	var header ruleHeader
	if err := binary.Read(bytes.NewReader(message), binary.NativeEndian, &header); err != nil {
		return l, fmt.Errorf("parse policy rule: %w", err)
	}
	attrs, err := attributes(message, sizeofRuleHeader)
	if err != nil {
		return l, fmt.Errorf("parse policy rule: %w", err)
	}
	l.inverted = header.Flags&unix.FIB_RULE_INVERT != 0
	header.Flags &= unix.FIB_RULE_INVERT | unix.FIB_RULE_FIND_SADDR
	l.Raw = encode(header)
	text := map[uint16]string{}
	for _, a := range attrs {
		switch a.Type {
		case unix.FRA_IIFNAME, unix.FRA_OIFNAME:
			in := a.Type == unix.FRA_IIFNAME
			if nl.BytesToString(a.Value) == name {
				l.In, l.Out = l.In || in, l.Out || !in
				continue
			}
			text[a.Type] = nl.BytesToString(a.Value)
		case unix.FRA_PRIORITY:
			l.priority = number(a.Value)
		case unix.FRA_SRC:
			text[a.Type] = netip.PrefixFrom(addr(a.Value), int(header.SrcLen)).String()
		case unix.FRA_DST:
			text[a.Type] = netip.PrefixFrom(addr(a.Value), int(header.DstLen)).String()
		case unix.FRA_TABLE:
			text[a.Type] = fmt.Sprint(number(a.Value))
		case unix.FRA_PAD:
			continue
		}
		l.Raw = appendAttr(l.Raw, a.Type, a.Value)
	}
	l.Text = l.describe(header.Family, text)
	return l, nil
}

func (l listed) describe(family uint8, text map[uint16]string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d:", l.priority)
	if family == unix.AF_INET6 {
		b.WriteString(" (IPv6)")
	}
	if l.inverted {
		b.WriteString(" not")
	}
	for _, part := range []struct {
		word string
		kind uint16
	}{{"from", unix.FRA_SRC}, {"to", unix.FRA_DST}, {"iif", unix.FRA_IIFNAME}, {"oif", unix.FRA_OIFNAME}, {"lookup", unix.FRA_TABLE}} {
		if v := text[part.kind]; v != "" {
			fmt.Fprintf(&b, " %s %s", part.word, v)
		}
	}
	return b.String()
}

// rulesThatName lists the policy rules of an interface, and says why some of
// them could not be made for another one.
func rulesThatName(name string) (rules []Rule, faults []string, err error) {
	for _, family := range families {
		all, err := readRules(family, name)
		if err != nil {
			return nil, nil, err
		}
		for i, l := range all {
			if !l.names() {
				continue
			}
			rules = append(rules, l.Rule)
			if why := unmovable(l, all[i+1:]); why != "" {
				faults = append(faults, fmt.Sprintf("policy rule %s names %s and %s", l, name, why))
			}
		}
	}
	return rules, faults, nil
}

// unmovable says why a rule can't be made for another interface as well; "" if
// it can. A new rule comes behind all of its priority.
func unmovable(l listed, behind []listed) string {
	if l.inverted {
		return "is inverted (not): it would match what comes over the bridge; rewrite it first"
	}
	for _, other := range behind {
		if other.priority == l.priority && !other.names() {
			return fmt.Sprintf("stands before another one of its priority (%s): give each a priority of its own", other)
		}
	}
	return ""
}
