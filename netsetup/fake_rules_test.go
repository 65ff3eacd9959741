package netsetup

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/vmrun/vmrun/netsetup/firewall"
)

func (f *fake) Firewall(firewall.Wish) (firewall.Facts, error) { return f.filter, nil }

func (f *fake) Filters() ([]firewall.Filter, error) { return f.filter.Filters, nil }

// keys are the things that rules are made of.
func keys(r firewall.Rules) []string {
	var all []string
	switch {
	case r.Backend != firewall.NFTables:
		for _, c := range r.Jumped() {
			all = append(all, fmt.Sprint(r.Backend, "/", c.Table, "/", c.Name))
		}
	case r.Transit != "":
		all = []string{"nftables/" + r.ID + "/" + r.Transit}
	default:
		all = []string{"nftables/" + r.ID}
		for _, link := range r.Links {
			all = append(all, "nftables/"+r.ID+"/"+link)
		}
	}
	return all
}

// AddRules is strict where iptables is; nftables replaces.
func (f *fake) AddRules(r firewall.Rules) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.change(); err != nil {
		return err
	}
	if r.Transit != "" && r.Backend == firewall.NFTables && !f.rules["nftables/"+r.ID] {
		return fmt.Errorf("table of %s is %w", r.ID, errGone)
	}
	for _, key := range keys(r) {
		if f.rules[key] && r.Backend != firewall.NFTables {
			return fmt.Errorf("%s exists", key)
		}
		f.rules[key] = true
	}
	return nil
}

func (f *fake) LostRules(all []firewall.Rules) ([]firewall.Rules, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(all), func(r firewall.Rules) bool {
		return !slices.ContainsFunc(keys(r), func(key string) bool { return !f.rules[key] })
	}), nil
}

func (f *fake) ReplaceRules(r firewall.Rules) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.change(); err != nil {
		return err
	}
	for _, key := range keys(r) {
		f.rules[key] = true
	}
	return nil
}

func (f *fake) DelChains(b firewall.Backend, chains []firewall.Jumped) error {
	var all []string
	for _, c := range chains {
		all = append(all, fmt.Sprint(b, "/", c.Table, "/", c.Name))
	}
	return f.delRules(func(key string) bool { return slices.Contains(all, key) })
}

func (f *fake) DelTables(network string) error {
	name := "nftables/" + network
	return f.delRules(func(key string) bool { return key == name || strings.HasPrefix(key, name+"/") })
}

func (f *fake) DelTransit(network, link string) error {
	return f.delRules(func(key string) bool { return key == "nftables/"+network+"/"+link })
}

func (f *fake) Trusted(link string) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.trusted[link], nil
}

func (f *fake) AwaitFirewalld(context.Context) {}

func (f *fake) Trust(link string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.change(); err != nil {
		return err
	}
	_, err := f.find(link)
	f.trusted[link] = true
	return err
}

func (f *fake) Distrust(link string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.change(); err != nil {
		return err
	}
	if !f.trusted[link] {
		return errGone
	}
	delete(f.trusted, link)
	return nil
}

func (f *fake) delRules(doomed func(key string) bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := errors.Join(f.change(), f.breaks("DelRules")); err != nil {
		return err
	}
	before := len(f.rules)
	maps.DeleteFunc(f.rules, func(key string, _ bool) bool { return doomed(key) })
	if len(f.rules) == before {
		return errGone
	}
	return nil
}
