// Package hoststate tells as text what a host looks like: its links, addresses,
// routes, rules, filters, settings, sockets, processes and files, read with the
// reference tools wherever there is one. Two such texts tell whether something
// stayed behind.
package hoststate

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
)

// section is one part of the text: the output of a command, its lines
// normalised and, where the tool's order means nothing, sorted.
type section struct {
	name    string
	command []string
	clean   []substitution
	sorted  bool
	drop    *regexp.Regexp // lines that are no difference
}

type substitution struct {
	pattern *regexp.Regexp
	with    string
}

func replace(pattern, with string) substitution {
	return substitution{regexp.MustCompile(pattern), with}
}

var (
	// Indexes are given anew to links that come and go; timers run.
	linkNoise = []substitution{
		replace(`^\d+: `, ""),
		replace(`(\w)@if\d+:`, "$1@peer:"),
		replace(` (\w+_timer) +[\d.]+`, " $1 *"),
		replace(`\\\s+`, " "),
	}
	// An address is tentative for a second; lifetimes run down.
	lifetimes = append(slices.Clone(linkNoise),
		replace(`(valid|preferred)_lft \d+sec`, "${1}_lft limited"),
		replace(` expires \d+sec`, " expires limited"),
		replace(` tentative\b`, ""),
	)
	handles = []substitution{replace(`^(filter|qdisc)(.*) (pref|handle|id|tag) \S+`, "$1$2 $3 *")}
	// The process that holds a socket is told by name, not by number; queues fill.
	sockets = []substitution{
		replace(`pid=\d+,fd=\d+`, "pid=*"),
		replace(` ino:\d+`, ""),
		replace(` sk:\S+`, ""),
		replace(`\s+`, " "),
	}
	counters = []substitution{replace(`\[\d+:\d+\]`, "[*]")}
	comments = regexp.MustCompile(`^#`)
	// The kernel's own route to a link-local address comes a second after it.
	late = regexp.MustCompile(`^(local|anycast) fe80::.* proto kernel`)
	// So does the multicast address to which others ask for it; the address is
	// compared by itself.
	solicited = regexp.MustCompile(`^33:33:ff:\S+ dev \S+ self permanent$`)
)

var sections = []section{
	{name: "links", command: []string{"ip", "-details", "-oneline", "link", "show"}, clean: linkNoise, sorted: true},
	{name: "addresses", command: []string{"ip", "-oneline", "address", "show"}, clean: lifetimes, sorted: true},
	{name: "routes", command: []string{"ip", "-4", "route", "show", "table", "all"}, clean: lifetimes, sorted: true},
	{name: "routes 6", command: []string{"ip", "-6", "route", "show", "table", "all"}, clean: lifetimes, sorted: true, drop: late},
	{name: "rules", command: []string{"ip", "-4", "rule", "show"}},
	{name: "rules 6", command: []string{"ip", "-6", "rule", "show"}},
	{name: "forwarding database", command: []string{"bridge", "fdb", "show"}, sorted: true, drop: solicited},
	{name: "bridge vlans", command: []string{"bridge", "vlan", "show"}},
	{name: "queueing", command: []string{"tc", "qdisc", "show"}, clean: handles, sorted: true},
	{name: "nftables", command: []string{"nft", "--stateless", "list", "ruleset"}, drop: comments},
	{name: "sockets", command: []string{"ss", "-H", "-lntupx"}, clean: sockets, sorted: true},
	firewall("iptables-nft-save"),
	firewall("iptables-legacy-save"),
	firewall("ip6tables-nft-save"),
	firewall("ip6tables-legacy-save"),
}

func firewall(tool string) section {
	return section{name: tool, command: []string{tool}, clean: counters, drop: comments}
}

// Snapshot is the host that the caller is in, as text; the folders are those
// whose files count, locks and logs apart. A tool that is not installed, and an
// object that this kernel does not know, is an empty section.
func Snapshot(folders ...string) (string, error) {
	var text strings.Builder
	for _, s := range sections {
		lines, err := s.read()
		if err != nil {
			return "", fmt.Errorf("read %s: %w", s.name, err)
		}
		write(&text, s.name, lines)
	}
	for _, part := range []struct {
		name string
		read func() ([]string, error)
	}{
		{"filters", filters},
		{"settings", settings},
		{"processes", Processes},
		{"open files", openFiles},
		{"files", func() ([]string, error) { return files(folders) }},
	} {
		lines, err := part.read()
		if err != nil {
			return "", fmt.Errorf("read %s: %w", part.name, err)
		}
		write(&text, part.name, lines)
	}
	return text.String(), nil
}

func write(text *strings.Builder, name string, lines []string) {
	fmt.Fprintf(text, "== %s\n", name)
	for _, line := range lines {
		text.WriteString(line + "\n")
	}
}

func (s section) read() ([]string, error) {
	lines, err := output(s.command)
	if err != nil {
		return nil, err
	}
	var kept []string
	for _, line := range lines {
		if s.drop != nil && s.drop.MatchString(line) {
			continue
		}
		for _, c := range s.clean {
			line = c.pattern.ReplaceAllString(line, c.with)
		}
		kept = append(kept, strings.TrimRight(line, " "))
	}
	if s.sorted {
		slices.Sort(kept)
	}
	if strings.HasSuffix(s.name, "-save") || s.name == "nftables" {
		kept = withoutEmptyTables(kept)
	}
	return kept, nil
}

// output runs a tool and splits what it says into lines. A tool that this
// machine, its kernel or its user namespace doesn't have says nothing; legacy
// iptables and bridge vlan tell so by failing.
func output(command []string) ([]string, error) {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
	if path, err := exec.LookPath("/usr/sbin/" + command[0]); err == nil {
		cmd.Path, cmd.Err = path, nil
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var failed *exec.ExitError
	switch {
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrPermission):
		return nil, nil
	case errors.As(err, &failed) && unsupported.Match(stderr.Bytes()):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("run %s: %w: %s", command[0], err, bytes.TrimSpace(stderr.Bytes()))
	}
	text := strings.TrimRight(string(out), "\n")
	if text == "" {
		return nil, nil
	}
	return strings.Split(text, "\n"), nil
}

var unsupported = regexp.MustCompile(`(?i)not supported|no such file|do you need to insmod|permission denied|not permitted|could not fetch|FIB table does not exist`)
