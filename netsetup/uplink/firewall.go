package uplink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// listTimeout bounds a program that lists rules.
const listTimeout = 10 * time.Second

// lister is a program that shows rules. Those of nft show what iptables-nft has
// set as well.
type lister struct {
	command []string
	instead string // it is only asked where this program is not installed
	read    func(string) []block
}

var listers = []lister{
	{command: []string{"nft", "--stateless", "list", "ruleset"}, read: readNft},
	{command: []string{"iptables-nft-save"}, instead: "nft", read: readSave},
	{command: []string{"ip6tables-nft-save"}, instead: "nft", read: readSave},
	{command: []string{"iptables-legacy-save"}, read: readSave},
	{command: []string{"ip6tables-legacy-save"}, read: readSave},
	{command: []string{"ipset", "save"}, read: readSets},
}

// block is a chain or a set: lines whose order counts.
type block struct {
	name  string
	lines []line
}

// line is a rule; links are the interfaces that it names, wildcards included.
type line struct {
	text  string
	links []string
}

// firewallMentions lists the rules that match what comes or goes over an
// interface and would not match the same over the bridge. A rule that stands for
// both is fine.
func firewallMentions(name, bridge string) ([]string, error) {
	var all []string
	for _, l := range listers {
		if _, err := exec.LookPath(l.instead); err == nil {
			continue
		}
		if _, err := exec.LookPath(l.command[0]); err != nil {
			continue
		}
		text, err := list(l.command)
		if err != nil {
			return nil, err
		}
		for _, b := range l.read(text) {
			for _, rule := range b.mentions(name, bridge) {
				all = append(all, fmt.Sprintf("the firewall's rule %q of %s names %s and would stop matching, an open port perhaps: put one for %s, the bridge, right behind it",
					rule, b.name, name, bridge))
			}
		}
	}
	return all, nil
}

// pattern is compiled when it is first needed: hardly a keeper takes an uplink
// over.
func pattern(text string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(text) })
}

// absent is what these programs say where the kernel has no such rules at all.
var absent = pattern(`(?i)not supported|no such file|does not exist|do you need to insmod|can't initialize`)

func list(command []string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), listTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if _, failed := errors.AsType[*exec.ExitError](err); failed && absent().Match(stderr.Bytes()) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("run %s: %w: %s", command[0], err, bytes.TrimSpace(stderr.Bytes()))
	}
	return string(out), nil
}

// mentions lists the rules of a chain that name an interface, unless the chain is
// the same for both: then a packet meets the same rules in the same order,
// whichever of the two it comes over.
func (b block) mentions(name, bridge string) []string {
	var rules, over, overBridge []string
	inverted := false
	for _, l := range b.lines {
		mine, its := l.names(name), l.names(bridge)
		if mine && !its {
			rules = append(rules, l.text)
			inverted = inverted || strings.Contains(l.text, "! ") || strings.Contains(l.text, "!=")
		}
		if mine || !its {
			over = append(over, l.with(name, bridge))
		}
		if its || !mine {
			overBridge = append(overBridge, l.with(name, bridge))
		}
	}
	if !inverted && slices.Equal(over, overBridge) {
		return nil
	}
	return rules
}

// names tells whether the rule is about an interface. A wildcard ends in + for
// iptables and in * for nft.
func (l line) names(link string) bool {
	return slices.ContainsFunc(l.links, func(pattern string) bool {
		prefix := strings.TrimRight(pattern, "+*")
		return pattern == link || prefix != pattern && strings.HasPrefix(link, prefix)
	})
}

// with is the rule for the bridge instead of the interface.
func (l line) with(name, bridge string) string {
	return regexp.MustCompile(`\b`+regexp.QuoteMeta(name)+`\b`).ReplaceAllLiteralString(l.text, bridge)
}

// ours are chains and tables of vmrun: they follow the routes by themselves.
var ours = pattern(`\bVMR-|\bvmrun_`)

var (
	saveLinks = pattern(`(?:^| )(?:-i|-o|--in-interface|--out-interface|--physdev-in|--physdev-out) (\S+)`)
	nftLinks  = pattern(`"([^"]+)"`)
	comment   = pattern(`comment "[^"]*"`)
)

// readSave reads what iptables-save says.
func readSave(text string) []block {
	chains := map[string]int{}
	var blocks []block
	table := ""
	for l := range strings.Lines(text) {
		l = strings.TrimSpace(l)
		if name, ok := strings.CutPrefix(l, "*"); ok {
			table = name
		}
		words := strings.Fields(l)
		if len(words) < 2 || words[0] != "-A" || ours().MatchString(l) {
			continue
		}
		name := table + " " + words[1]
		i, ok := chains[name]
		if !ok {
			i = len(blocks)
			chains[name] = i
			blocks = append(blocks, block{name: name})
		}
		blocks[i].lines = append(blocks[i].lines, newLine(l, saveLinks()))
	}
	return blocks
}

func newLine(text string, links *regexp.Regexp) line {
	l := line{text: text}
	for _, m := range links.FindAllStringSubmatch(comment().ReplaceAllString(text, ""), -1) {
		l.links = append(l.links, m[1])
	}
	return l
}

// readNft reads what nft lists: tables, and in them chains, sets and maps. Rules
// of a netdev table sit on the interface itself and go on matching there.
func readNft(text string) []block {
	var blocks []block
	table, inside := "", false // a block that counts
	for l := range strings.Lines(text) {
		indent := len(l) - len(strings.TrimLeft(l, "\t "))
		l = strings.TrimSpace(l)
		switch {
		case l == "":
		case indent == 0:
			table, inside = strings.TrimSuffix(strings.TrimPrefix(l, "table "), " {"), false
		case indent == 1 && strings.HasSuffix(l, "{"):
			name := table + " " + strings.TrimSuffix(l, " {")
			if inside = !strings.HasPrefix(name, "netdev ") && !ours().MatchString(name); inside {
				blocks = append(blocks, block{name: name})
			}
		case inside && !strings.HasPrefix(l, "devices = ") && !strings.Contains(l, " hook ingress ") && !ours().MatchString(l):
			b := &blocks[len(blocks)-1]
			b.lines = append(b.lines, newLine(l, nftLinks()))
		}
	}
	return blocks
}

// readSets reads ipset's sets, some of which hold interfaces.
func readSets(text string) []block {
	var blocks []block
	for l := range strings.Lines(text) {
		l = strings.TrimSpace(l)
		words := strings.Fields(l)
		if len(words) < 3 || words[0] != "add" {
			continue
		}
		if len(blocks) == 0 || blocks[len(blocks)-1].name != "set "+words[1] {
			blocks = append(blocks, block{name: "set " + words[1]})
		}
		_, link, _ := strings.Cut(words[2], ",")
		b := &blocks[len(blocks)-1]
		b.lines = append(b.lines, line{text: l, links: []string{strings.TrimPrefix(link, "physdev:")}})
	}
	return blocks
}
