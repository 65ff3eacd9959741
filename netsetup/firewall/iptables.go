package firewall

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Jumped is an iptables chain of ours, with the jumps that lead to it: what an
// undo needs, and therefore what the journal holds.
type Jumped struct {
	Table string `json:"table"`
	Name  string `json:"name"`
	Hooks []Jump `json:"hooks"`

	rules []string // matches and target, without -A
}

// Jump is a jump from a chain that is not ours.
type Jump struct {
	From  string `json:"from"`
	Match string `json:"match,omitempty"`
}

func (j Jump) rule(to string) string {
	return strings.TrimSpace(j.Match + " -j " + to)
}

// chainPrefix begins the name of each chain of ours in iptables.
const chainPrefix = "VMR-"

var hashText = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Jumped are the chains as iptables has them.
func (r Rules) Jumped() []Jumped {
	var all []Jumped
	for _, c := range r.Chains {
		j := Jumped{Table: ipTables[c.Hook], Name: chainPrefix + r.ID + "-" + c.Name}
		if r.Transit != "" {
			sum := sha256.Sum256([]byte(r.Transit))
			j.Name += hashText.EncodeToString(sum[:])[:8]
		}
		for _, rule := range c.Rules {
			j.rules = append(j.rules, strings.TrimSpace(rule.arguments()+" -j "+rule.target()))
		}
		for _, m := range c.Enter {
			j.Hooks = append(j.Hooks, Jump{From: r.from(c.Hook), Match: m.arguments()})
		}
		all = append(all, j)
	}
	return all
}

// ipTables have the hooks.
var ipTables = map[Hook]string{Forward: "filter", Input: "filter", Prerouting: "nat", Postrouting: "nat"}

// from is where jumps come from. Decisions on forwarding belong before Docker's.
func (r Rules) from(h Hook) string {
	if h == Forward && r.Docker {
		return dockerChain
	}
	return strings.ToUpper(string(h))
}

// arguments are iptables' for a match.
func (m Match) arguments() string {
	var a []string
	add := func(option, value string) {
		if value != "" {
			a = append(a, option, value)
		}
	}
	add("-s", prefixText(m.Src))
	add("-d", prefixText(m.Dst))
	add("-i", m.In)
	add("-o", m.Out)
	add("! -o", m.NotOut)
	add("-p", m.Proto)
	if m.Port != 0 {
		a = append(a, "-m", m.Proto, "--dport", strconv.Itoa(m.Port))
	}
	switch m.State {
	case Replies:
		a = append(a, "-m conntrack --ctstate RELATED,ESTABLISHED")
	case Fresh:
		a = append(a, "-m conntrack --ctstate NEW -m conntrack ! --ctstate DNAT")
	}
	return strings.Join(a, " ")
}

func prefixText(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}

func (r Rule) target() string {
	if r.Then == Redirect {
		return "REDIRECT --to-ports " + strconv.Itoa(r.ToPort)
	}
	return strings.ToUpper(string(r.Then))
}

// lines are the chains as iptables' arguments, jumps last: they make them count.
func lines(chains []Jumped) []string {
	var lines []string
	for _, c := range chains {
		for _, r := range c.rules {
			lines = append(lines, fmt.Sprintf("-t %s -A %s %s", c.Table, c.Name, r))
		}
		for _, h := range c.Hooks {
			lines = append(lines, fmt.Sprintf("-t %s -I %s 1 %s", c.Table, h.From, h.rule(c.Name)))
		}
	}
	return lines
}

// restoreScript is the input of iptables-restore --noflush that adds chains:
// one process, and one transaction per table.
func restoreScript(chains []Jumped) string {
	return script(chains, func(b *strings.Builder, c Jumped) {
		fmt.Fprintf(b, ":%s - [0:0]\n", c.Name)
	}, func(b *strings.Builder, c Jumped) {
		for _, r := range c.rules {
			fmt.Fprintf(b, "-A %s %s\n", c.Name, r)
		}
		for _, h := range c.Hooks {
			fmt.Fprintf(b, "-I %s 1 %s\n", h.From, h.rule(c.Name))
		}
	})
}

// deleteScript removes chains: jumps first, since a chain in use stays.
func deleteScript(chains []Jumped) string {
	return script(chains, func(*strings.Builder, Jumped) {}, func(b *strings.Builder, c Jumped) {
		for _, h := range c.Hooks {
			fmt.Fprintf(b, "-D %s %s\n", h.From, h.rule(c.Name))
		}
		fmt.Fprintf(b, "-F %s\n-X %s\n", c.Name, c.Name)
	})
}

func script(chains []Jumped, declare, body func(*strings.Builder, Jumped)) string {
	var b strings.Builder
	for _, table := range []string{"filter", "nat"} {
		var of []Jumped
		for _, c := range chains {
			if c.Table == table {
				of = append(of, c)
			}
		}
		if len(of) == 0 {
			continue
		}
		fmt.Fprintf(&b, "*%s\n", table)
		for _, c := range of {
			declare(&b, c)
		}
		for _, c := range of {
			body(&b, c)
		}
		b.WriteString("COMMIT\n")
	}
	return b.String()
}

// standsIn tells whether a listing of iptables-save has a chain with all its
// rules and jumps. They are counted: the text of a rule depends on the version
// that prints it.
func (c Jumped) standsIn(saved string) bool {
	rules, declared, table := 0, false, ""
	jumps := map[string]int{}
	for line := range strings.Lines(saved) {
		words := strings.Fields(line)
		switch {
		case strings.HasPrefix(line, "*"):
			table = strings.TrimSpace(line[1:])
		case table != c.Table || len(words) < 2:
		case words[0] == ":"+c.Name:
			declared = true
		case words[0] == "-A" && words[1] == c.Name:
			rules++
		case words[0] == "-A" && words[len(words)-2] == "-j" && words[len(words)-1] == c.Name:
			jumps[words[1]]++
		}
	}
	for _, h := range c.Hooks {
		jumps[h.From]--
		if jumps[h.From] < 0 {
			return false
		}
	}
	return declared && rules == len(c.rules)
}
