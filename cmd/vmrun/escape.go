package main

import (
	"fmt"
	"strings"
)

// action is what a key after the escape asks for.
type action int

const (
	actNone action = iota // nothing; the bytes, if any, are the guest's
	actEnd                // end the VM
	actHelp               // list the keys
)

// escapeParser finds the escape key in what is typed. It is fed byte by byte,
// since a key may arrive split over reads or with others in one.
type escapeParser struct {
	key     byte // 0: there is none, all is the guest's
	pending bool // the escape key was the last byte
}

// next takes one typed byte and returns what the guest is to get and what to do.
func (p *escapeParser) next(b byte) (send []byte, act action) {
	if !p.pending {
		if p.key != 0 && b == p.key {
			p.pending = true
			return nil, actNone
		}
		return []byte{b}, actNone
	}
	p.pending = false
	switch b {
	case '.':
		return nil, actEnd
	case '?':
		return nil, actHelp
	case p.key:
		return []byte{b}, actNone
	}
	return []byte{p.key, b}, actNone
}

// parseEscape reads the value of --escape: a control character as ctrl-] or ^],
// or none. The zero byte means that there is no escape key.
func parseEscape(text string) (byte, error) {
	if text == "none" {
		return 0, nil
	}
	name, ok := strings.CutPrefix(strings.ToLower(text), "ctrl-")
	if !ok {
		name, ok = strings.CutPrefix(strings.ToLower(text), "^")
	}
	if !ok || len(name) != 1 || !strings.Contains(`abcdefghijklmnopqrstuvwxyz[\]^_`, name) {
		return 0, fmt.Errorf("parse escape key %q: want ctrl-] or another control character, or none", text)
	}
	return strings.ToUpper(name)[0] & 0x1f, nil
}

// escapeName is how people write an escape key.
func escapeName(key byte) string {
	return "ctrl-" + strings.ToLower(string(rune(key|0x40)))
}

// escapeHelp lists the keys; the dot does what meaning says.
func escapeHelp(key byte, meaning string) string {
	name := escapeName(key)
	return fmt.Sprintf("%[1]s .       %[2]s\n%[1]s ?       this list\n%[1]s %[1]s  send %[1]s to the guest\n", name, meaning)
}
