package hoststate

import (
	"regexp"
	"slices"
	"strings"
)

// A listing of rules makes built-in tables, and a tool's first rule does: an
// empty table that lets everything pass is as good as none.
var (
	tableStart = regexp.MustCompile(`^(\*|table )`)
	tableEnd   = regexp.MustCompile(`^(COMMIT|\})$`)
	idleLine   = regexp.MustCompile(`^\s*$` +
		`|^:(PREROUTING|INPUT|FORWARD|OUTPUT|POSTROUTING) ACCEPT ` +
		`|^\s+chain (PREROUTING|INPUT|FORWARD|OUTPUT|POSTROUTING) \{$` +
		`|^\s+type \w+ hook \w+ priority [\w +-]+; policy accept;$` +
		`|^\s+\}$`)
)

// withoutEmptyTables takes the tables out of a listing of iptables-save or nft
// that hold nothing but empty built-in chains with the policy ACCEPT.
func withoutEmptyTables(lines []string) []string {
	var kept []string
	for len(lines) > 0 {
		size := 1
		if tableStart.MatchString(lines[0]) {
			if end := slices.IndexFunc(lines, tableEnd.MatchString); end > 0 {
				size = end + 1
			}
		}
		if table := lines[:size]; size == 1 || !idle(table) {
			kept = append(kept, table...)
		}
		lines = lines[size:]
	}
	return kept
}

// idle tells whether a table, from its first line to its last, does nothing. A
// table of another name than iptables' own is something even when it is empty.
func idle(table []string) bool {
	name := strings.Fields(strings.TrimSuffix(strings.TrimPrefix(table[0], "*"), " {"))
	own := slices.Contains([]string{"filter", "nat", "mangle", "raw", "security"}, name[len(name)-1])
	for _, line := range table[1 : len(table)-1] {
		own = own && idleLine.MatchString(line)
	}
	return own
}
