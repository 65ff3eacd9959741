package capture

import (
	"fmt"
	"strings"
)

// Filter tells the packets that are wanted. The zero value wants all.
type Filter struct {
	text  string
	match condition
}

// condition is what a part of an expression says of a frame.
type condition func(frame) bool

// Wants tells whether a packet passes the filter. What was cut off a packet is
// as if it were not there.
func (f Filter) Wants(p Packet) bool { return f.match == nil || f.match(parseFrame(p)) }

// String is the expression as it was given.
func (f Filter) String() string { return f.text }

// ParseFilter reads an expression in the language of pcap-filter(7), of which it
// knows:
//
//	ether | arp | rarp | ip | ip6 | icmp | icmp6 | igmp | tcp | udp | sctp
//	vlan [NUMBER]
//	[ip | ip6 | arp | rarp] [src | dst] [host] ADDRESS
//	[ip | ip6 | arp | rarp] [src | dst] net ADDRESS/BITS
//	[tcp | udp | sctp] [src | dst] port NUMBER
//	[tcp | udp | sctp] [src | dst] portrange FIRST-LAST
//	ether [src | dst] [host] MAC
//	[ether] broadcast, [ether] multicast, less BYTES, greater BYTES
//
// joined by and (&&), or (||), not (!) and parentheses. As there, and and or bind
// equally, from the left. Unlike there, what is behind VLAN tags and IPv6
// extension headers is looked at as if these were not there. The empty
// expression wants all.
func ParseFilter(text string) (Filter, error) {
	p := &parser{words: splitWords(text)}
	if len(p.words) == 0 {
		return Filter{}, nil
	}
	match, err := p.expression()
	if err == nil && p.peek() != "" {
		err = fmt.Errorf("want and, or, or the end, got %q", p.peek())
	}
	if err != nil {
		return Filter{}, fmt.Errorf("parse filter %q: %w", text, err)
	}
	return Filter{text: text, match: match}, nil
}

// splitWords takes an expression apart.
func splitWords(text string) []string {
	for _, mark := range []string{"(", ")", "&&", "||", "!"} {
		text = strings.ReplaceAll(text, mark, " "+mark+" ")
	}
	return strings.Fields(text)
}

// parser goes through the words of an expression.
type parser struct {
	words []string
	depth int
}

// maxDepth bounds how deep an expression nests.
const maxDepth = 100

// peek is the next word; "" at the end.
func (p *parser) peek() string {
	if len(p.words) == 0 {
		return ""
	}
	return p.words[0]
}

// next takes the next word.
func (p *parser) next() string {
	word := p.peek()
	if word != "" {
		p.words = p.words[1:]
	}
	return word
}

// take takes the next word if it is one of those.
func (p *parser) take(words ...string) (string, bool) {
	for _, w := range words {
		if p.peek() == w {
			return p.next(), true
		}
	}
	return "", false
}

func (p *parser) expression() (condition, error) {
	if p.depth++; p.depth > maxDepth {
		return nil, fmt.Errorf("it nests deeper than %d", maxDepth)
	}
	defer func() { p.depth-- }()
	left, err := p.term()
	for err == nil {
		operator, ok := p.take("and", "&&", "or", "||")
		if !ok {
			return left, nil
		}
		var right condition
		if right, err = p.term(); err != nil {
			break
		}
		left = join(operator, left, right)
	}
	return nil, err
}

func join(operator string, a, b condition) condition {
	if operator == "and" || operator == "&&" {
		return func(f frame) bool { return a(f) && b(f) }
	}
	return func(f frame) bool { return a(f) || b(f) }
}

func (p *parser) term() (condition, error) {
	negated := false
	for {
		if _, ok := p.take("not", "!"); !ok {
			break
		}
		negated = !negated
	}
	match, err := p.operand()
	if err != nil || !negated {
		return match, err
	}
	return func(f frame) bool { return !match(f) }, nil
}

func (p *parser) operand() (condition, error) {
	if _, ok := p.take("("); !ok {
		return p.primitive()
	}
	match, err := p.expression()
	if err != nil {
		return nil, err
	}
	if _, ok := p.take(")"); !ok {
		return nil, fmt.Errorf("want %q, got %s", ")", quoted(p.peek()))
	}
	return match, nil
}

func quoted(word string) string {
	if word == "" {
		return "the end"
	}
	return fmt.Sprintf("%q", word)
}
