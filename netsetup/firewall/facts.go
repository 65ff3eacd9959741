package firewall

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Facts are what a host has to carry rules, and who else filters there. They
// are plain data.
type Facts struct {
	NoNFTables string   // why nftables can't carry a network; "": it can
	Command    Backend  // the iptables command that works; "": none, or not asked for
	NoCommand  string   // why there is none
	Docker     bool     // the command's FORWARD leads through Docker's chain for others' rules
	Filters    []Filter // iptables of others, of both kinds
	Firewalld  bool     // firewalld filters by nftables, and can be asked to trust a link
	Strangers  []string // tables of nftables that drop what they don't know, for people
}

// Filter is a kind of iptables in which somebody filters.
type Filter struct {
	Backend Backend
	Docker  bool // FORWARD leads through Docker's chain for others' rules
	Blocks  bool // what it has no rule for does not pass everywhere
}

// dockerChain is where Docker leaves the decision to others first.
const dockerChain = "DOCKER-USER"

// Wish is what a profile or the environment asks for.
type Wish string

const (
	Auto Wish = "auto"
	// WishNFTables and WishIPTables are for one and no other.
	WishNFTables Wish = "nftables"
	WishIPTables Wish = "iptables"
)

// ParseWish reads a wish; "" is Auto.
func ParseWish(s string) (Wish, error) {
	switch w := Wish(s); w {
	case "":
		return Auto, nil
	case Auto, WishNFTables, WishIPTables:
		return w, nil
	}
	return "", fmt.Errorf("choose firewall: %q is none of auto, nftables, iptables", s)
}

// LackError says that a host can't carry rules as wished.
type LackError struct {
	Backend Backend // what it lacks
	Reason  string
}

func (e *LackError) Error() string { return e.Reason }

// Choose decides what carries a network's rules: nftables where it can, as it
// needs no process, changes all at once, and closes what it opened with its
// keeper.
func (f Facts) Choose(w Wish) (Backend, error) {
	switch {
	case w != WishIPTables && f.NoNFTables == "":
		return NFTables, nil
	case w == WishNFTables:
		return "", &LackError{NFTables, "nftables can't carry a network here: " + f.NoNFTables}
	case f.Command != "":
		return f.Command, nil
	case w == WishIPTables:
		return "", &LackError{IPTables, f.NoCommand}
	}
	return "", &LackError{IPTables, fmt.Sprintf("%s; nftables can't carry a network here: %s", f.NoCommand, f.NoNFTables)}
}

// Blocking are the iptables that have to hear of what passes, beside nftables.
func (f Facts) Blocking(w Wish, b Backend) []Filter {
	if w == WishNFTables || b != NFTables {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(f.Filters), func(x Filter) bool { return !x.Blocks })
}

// ReadFacts looks at the host. With a wish other than "" only what it takes to
// choose for it is looked for, in a hurry: a process costs milliseconds.
func (h *Host) ReadFacts(w Wish) (Facts, error) {
	var f Facts
	if err := h.tables.probe(w != ""); err != nil {
		f.NoNFTables = err.Error()
	}
	if w == "" || w == WishIPTables || w == Auto && f.NoNFTables != "" {
		command, docker, err := h.workingCommand()
		f.Command, f.Docker = command, docker
		if err != nil {
			f.NoCommand = err.Error()
		}
	}
	if f.NoNFTables != "" {
		return f, nil
	}
	chains, err := h.tables.baseChains()
	if err != nil {
		return f, err
	}
	if filtersFirewalld(chains) {
		_, err := h.Trusted("lo") // any link: what counts is that there is an answer
		f.Firewalld = err == nil
	}
	if f.Strangers, err = h.tables.strangers(chains, f.Firewalld); err != nil || w == WishIPTables {
		return f, err
	}
	f.Filters, err = h.filters(chains)
	return f, err
}

// Filters looks at iptables of both kinds, where somebody uses them at all.
func (h *Host) Filters() ([]Filter, error) {
	chains, err := h.tables.baseChains()
	if err != nil {
		return nil, err
	}
	return h.filters(chains)
}

func (h *Host) filters(chains []*nftables.Chain) ([]Filter, error) {
	var all []Filter
	if slices.ContainsFunc(chains, isIPTables) && installed(IPTablesNFT) {
		f, err := h.tables.filter(chains)
		if err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	legacy, err := legacyFilters()
	if err != nil || !legacy || !installed(IPTablesLegacy) {
		return all, err
	}
	saved, err := h.run(string(IPTablesLegacy)+"-save", "", "-t", "filter")
	if err != nil {
		return nil, err
	}
	return append(all, newFilter(IPTablesLegacy, saved)), nil
}

func installed(b Backend) bool {
	_, err := exec.LookPath(string(b) + "-save")
	return err == nil
}

// legacyNames lists the tables of legacy iptables that are in use.
const legacyNames = "/proc/net/ip_tables_names"

// legacyFilters tells whether anybody filters with legacy iptables, without
// making its tables.
func legacyFilters() (bool, error) {
	names, err := os.ReadFile(legacyNames)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return slices.Contains(strings.Fields(string(names)), "filter"), err
}

// filter is newFilter for iptables-nft's chains, as the kernel has them: most
// hosts have some, and a process costs as much as all else that is asked.
func (t *tables) filter(chains []*nftables.Chain) (Filter, error) {
	f := Filter{Backend: IPTablesNFT}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range chains {
		if !isIPTables(c) {
			continue
		}
		f.Blocks = f.Blocks || c.Policy != nil && *c.Policy != nftables.ChainPolicyAccept
		rules, err := t.conn.GetRules(c.Table, c)
		if err != nil {
			return f, fmt.Errorf("list iptables' chain %s: %w", c.Name, err)
		}
		for _, r := range rules {
			to := jumpOf(r)
			f.Blocks = f.Blocks || !strings.HasPrefix(to, chainPrefix)
			f.Docker = f.Docker || c.Name == "FORWARD" && to == dockerChain
		}
	}
	return f, nil
}

// jumpOf is the chain that a rule jumps to; "" for none.
func jumpOf(r *nftables.Rule) string {
	for _, e := range r.Exprs {
		if v, ok := e.(*expr.Verdict); ok {
			return v.Chain
		}
	}
	return ""
}

// newFilter reads what iptables-save lists of the table "filter".
func newFilter(b Backend, saved string) Filter {
	f := Filter{Backend: b}
	for line := range strings.Lines(saved) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case ":FORWARD", ":INPUT":
			f.Blocks = f.Blocks || words[1] != "ACCEPT"
		case "-A":
			foreign := !strings.HasPrefix(words[len(words)-1], chainPrefix)
			f.Blocks = f.Blocks || foreign && (words[1] == "FORWARD" || words[1] == "INPUT")
			f.Docker = f.Docker || words[1] == "FORWARD" && words[len(words)-1] == dockerChain
		}
	}
	return f
}

// baseChains lists the chains that filter what is forwarded or comes in.
func (t *tables) baseChains() ([]*nftables.Chain, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.open(); err != nil {
		return nil, err
	}
	all, err := t.conn.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list nftables: %w", err)
	}
	return slices.DeleteFunc(all, func(c *nftables.Chain) bool {
		judges := c.Hooknum != nil && (*c.Hooknum == *nftables.ChainHookForward || *c.Hooknum == *nftables.ChainHookInput)
		v4 := c.Table.Family == nftables.TableFamilyIPv4 || c.Table.Family == nftables.TableFamilyINet
		return !judges || !v4 || strings.HasPrefix(c.Table.Name, tablePrefix)
	}), nil
}

// isIPTables tells a chain of iptables-nft, which is edited through that.
func isIPTables(c *nftables.Chain) bool {
	return c.Table.Family == nftables.TableFamilyIPv4 && c.Table.Name == "filter" && (c.Name == "FORWARD" || c.Name == "INPUT")
}

// strangers are the chains that drop what they don't know: an accept of ours does
// not outdo them. Firewalld's are none where it can be asked.
func (t *tables) strangers(chains []*nftables.Chain, firewalld bool) ([]string, error) {
	var all []string
	for _, c := range chains {
		if isIPTables(c) || firewalld && c.Table.Name == firewalldTable {
			continue
		}
		drops, err := t.dropsTheRest(c)
		if err != nil {
			return nil, err
		}
		if drops {
			family := map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ip", nftables.TableFamilyINet: "inet"}[c.Table.Family]
			all = append(all, fmt.Sprintf("%s %s, chain %s", family, c.Table.Name, c.Name))
		}
	}
	return all, nil
}

// dropsTheRest tells whether a chain lets nothing pass that none of its rules
// lets: by its policy, or by a last rule that is for all.
func (t *tables) dropsTheRest(c *nftables.Chain) (bool, error) {
	if c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
		return true, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	rules, err := t.conn.GetRules(c.Table, c)
	if err != nil || len(rules) == 0 {
		return false, err
	}
	for _, e := range rules[len(rules)-1].Exprs {
		switch e := e.(type) {
		case *expr.Counter, *expr.Log:
		case *expr.Reject:
			return true, nil
		case *expr.Verdict:
			return e.Kind == expr.VerdictDrop, nil
		default:
			return false, nil
		}
	}
	return false, nil
}
