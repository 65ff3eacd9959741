package main

import (
	"bytes"
	"slices"
	"testing"
)

func TestEscapeParser(t *testing.T) {
	const esc = "\x1d"
	for _, tt := range []struct {
		name, in, sent string
		key            byte
		acts           []action
	}{
		{"plain", "ls\r", "ls\r", 0x1d, nil},
		{"control characters are the guest's", "\x03\x1a\x00", "\x03\x1a\x00", 0x1d, nil},
		{"end", "a" + esc + ".", "a", 0x1d, []action{actEnd}},
		{"help", esc + "?b", "b", 0x1d, []action{actHelp}},
		{"twice sends one", esc + esc + ".", esc + ".", 0x1d, nil},
		{"thrice and dot ends", esc + esc + esc + ".", esc, 0x1d, []action{actEnd}},
		{"another key goes through with its escape", esc + "x", esc + "x", 0x1d, nil},
		{"escape alone waits", "a" + esc, "a", 0x1d, nil},
		{"another escape key", esc + ".\x01?", esc + ".", 0x01, []action{actHelp}},
		{"none", "\x00" + esc + ".", "\x00" + esc + ".", 0, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sent, acts := feed(&escapeParser{key: tt.key}, []byte(tt.in))
			if string(sent) != tt.sent {
				t.Errorf("sent %q, want %q", sent, tt.sent)
			}
			if !slices.Equal(acts, tt.acts) {
				t.Errorf("actions %v, want %v", acts, tt.acts)
			}
		})
	}
}

func TestParseEscape(t *testing.T) {
	for text, want := range map[string]byte{"ctrl-]": 0x1d, "^]": 0x1d, "Ctrl-A": 0x01, "^a": 0x01, `ctrl-\`: 0x1c, "none": 0} {
		if got, err := parseEscape(text); err != nil || got != want {
			t.Errorf("parseEscape(%q) = %#x, %v; want %#x", text, got, err, want)
		}
	}
	for _, text := range []string{"", "]", "ctrl-", "ctrl-ab", "^1", "ctrl-@", "ctrl-é"} {
		if _, err := parseEscape(text); err == nil {
			t.Errorf("parseEscape(%q): no error", text)
		}
	}
	if got := escapeName(0x1d); got != "ctrl-]" {
		t.Errorf("escapeName: %s", got)
	}
}

// FuzzEscape checks that nothing typed is lost or invented: what is sent is what
// came in, less the escapes that were obeyed.
func FuzzEscape(f *testing.F) {
	f.Add([]byte("ls\x1d."))
	f.Add([]byte("\x1d\x1d\x1d?\x1dx\x1d"))
	f.Fuzz(func(t *testing.T, in []byte) {
		p := &escapeParser{key: 0x1d}
		sent, acts := feed(p, in)
		swallowed := len(in) - len(sent) - 2*len(acts)
		if p.pending {
			swallowed--
		}
		doubled := bytes.Count(in, []byte("\x1d\x1d"))
		if swallowed < 0 || swallowed > doubled {
			t.Errorf("%q: %d bytes missing in %q, %d escapes doubled", in, swallowed, sent, doubled)
		}
		if all, _ := feed(&escapeParser{}, in); !bytes.Equal(all, in) {
			t.Errorf("without an escape key: %q became %q", in, all)
		}
	})
}

func feed(p *escapeParser, in []byte) (sent []byte, acts []action) {
	for _, b := range in {
		out, act := p.next(b)
		sent = append(sent, out...)
		if act != actNone {
			acts = append(acts, act)
		}
	}
	return sent, acts
}
