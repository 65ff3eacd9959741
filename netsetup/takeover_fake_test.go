package netsetup

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vmrun/vmrun/netsetup/uplink"
	"golang.org/x/sys/unix"
)

// used is what the fake's eth1 has beyond its address: all that a take over moves.
func used() (uplink.State, []uplink.Rule) {
	return uplink.State{
		Addresses: []uplink.Address{
			{Prefix: netip.MustParsePrefix("192.0.2.2/24"), Valid: 3600, Preferred: 1800},
			{Prefix: netip.MustParsePrefix("192.0.2.20/32"), Label: "eth1:1", Valid: uplink.Forever, Preferred: uplink.Forever},
			{Prefix: netip.MustParsePrefix("fe80::1/64"), Valid: uplink.Forever, Preferred: uplink.Forever},
		},
		Routes: []uplink.Route{
			fakeRoute("default via 192.0.2.1", netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("192.0.2.1")),
			fakeRoute("192.0.2.0/24", netip.MustParsePrefix("192.0.2.0/24"), netip.Addr{}),
		},
		Neighbours: []uplink.Neighbour{{IP: netip.MustParseAddr("192.0.2.9"), MAC: []byte{2, 0, 0, 0, 0, 9}, State: unix.NUD_PERMANENT}},
	}, []uplink.Rule{{Text: "100: lookup 100", Raw: []byte("rule"), In: true}}
}

// fakeRoute is a route as the kernel has it, as far as the fake cares.
func fakeRoute(text string, dst netip.Prefix, via netip.Addr) uplink.Route {
	var b bytes.Buffer
	binary.Write(&b, binary.NativeEndian, unix.RtMsg{Family: unix.AF_INET, Dst_len: uint8(dst.Bits()), Table: unix.RT_TABLE_MAIN})
	attr := func(kind uint16, a netip.Addr) {
		binary.Write(&b, binary.NativeEndian, []uint16{8, kind})
		b.Write(a.AsSlice())
	}
	if dst.Bits() > 0 {
		attr(unix.RTA_DST, dst.Addr())
	}
	if via.IsValid() {
		attr(unix.RTA_GATEWAY, via)
	}
	return uplink.Route{Text: text, Raw: b.Bytes()}
}

// onLink is what the fake has of IP on a link.
type onLink struct {
	uplink.State
	rules []uplink.Rule
}

func (f *fake) on(link string) (*onLink, error) {
	if _, err := f.find(link); err != nil {
		return nil, err
	}
	if f.ip[link] == nil {
		f.ip[link] = &onLink{}
	}
	return f.ip[link], nil
}

func (f *fake) Inspect(link, _ string) (uplink.Facts, error) {
	l, err := f.on(link)
	if err != nil {
		return uplink.Facts{}, err
	}
	s, err := f.State(link)
	return uplink.Facts{State: s, Rules: slices.Clone(l.rules)}, err
}

func (f *fake) State(link string) (uplink.State, error) {
	l, err := f.on(link)
	if err != nil {
		return uplink.State{}, err
	}
	return uplink.State{Addresses: slices.Clone(l.Addresses), Routes: slices.Clone(l.Routes), Neighbours: slices.Clone(l.Neighbours)}, nil
}

func (f *fake) Settings(link, other string) (map[string]string, error) {
	all := map[string]string{}
	for key, value := range f.sysctls {
		if before, after, ok := strings.Cut(key, "/"+link+"/"); ok && !strings.HasSuffix(key, "/forwarding") {
			all[before+"/"+other+"/"+after] = value
		}
	}
	return all, nil
}

// alter counts a change of a link and does it.
func (f *fake) alter(link string, change func(*onLink) error) error {
	if err := f.change(); err != nil {
		return err
	}
	l, err := f.on(link)
	if err != nil {
		return err
	}
	return change(l)
}

// put replaces what is the same, or adds it.
func put[T any](all *[]T, v T, same func(T) bool) error {
	if i := slices.IndexFunc(*all, same); i >= 0 {
		(*all)[i] = v
		return nil
	}
	*all = append(*all, v)
	return nil
}

func del[T any](all *[]T, same func(T) bool) error {
	if !slices.ContainsFunc(*all, same) {
		return errGone
	}
	*all = slices.DeleteFunc(*all, same)
	return nil
}

func (f *fake) PutAddress(link string, a uplink.Address) error {
	return f.alter(link, func(l *onLink) error { return put(&l.Addresses, a, a.Same) })
}

func (f *fake) DelAddress(link string, a uplink.Address) error {
	return f.alter(link, func(l *onLink) error { return del(&l.Addresses, a.Same) })
}

func (f *fake) PutRoute(link string, r uplink.Route) error {
	return f.alter(link, func(l *onLink) error { return put(&l.Routes, r, r.Same) })
}

func (f *fake) DelRoute(link string, r uplink.Route) error {
	return f.alter(link, func(l *onLink) error { return del(&l.Routes, r.Same) })
}

func (f *fake) PutNeighbour(link string, n uplink.Neighbour) error {
	return f.alter(link, func(l *onLink) error {
		return put(&l.Neighbours, n, func(o uplink.Neighbour) bool { return o.IP == n.IP })
	})
}

func (f *fake) ShareNeighbours(from, to string) error {
	if err := f.change(); err != nil {
		return err
	}
	_, err := f.find(from)
	_, toErr := f.find(to)
	return errors.Join(err, toErr)
}

func (f *fake) AddPolicyRule(link string, r uplink.Rule) error {
	return f.alter(link, func(*onLink) error {
		rules := f.policy[link]
		err := put(&rules, r, func(o uplink.Rule) bool { return o.Text == r.Text })
		f.policy[link] = rules
		return err
	})
}

// DelPolicyRule works without the link, which a rule only names.
func (f *fake) DelPolicyRule(link string, r uplink.Rule) error {
	if err := f.change(); err != nil {
		return err
	}
	rules := f.policy[link]
	err := del(&rules, func(o uplink.Rule) bool { return o.Text == r.Text })
	f.policy[link] = rules
	return err
}

func (f *fake) Release(link, bridge string) error {
	if err := f.change(); err != nil {
		return err
	}
	l, err := f.find(link)
	if err != nil {
		return err
	}
	b, err := f.find(bridge)
	if err != nil {
		return err
	}
	if l.Master != b.Index {
		return errGone
	}
	l.Master = 0
	return nil
}

func (f *fake) AwaitUp(_ context.Context, link string) error {
	if err := f.change(); err != nil {
		return err
	}
	l, err := f.find(link)
	if err == nil && !l.Up {
		return fmt.Errorf("%s is down", link)
	}
	return err
}

func (f *fake) Solicit(link string) error {
	_, err := f.find(link)
	return err
}

func (f *fake) AwaitNeighbour(_ context.Context, link string, ip netip.Addr) error {
	if err := f.change(); err != nil {
		return err
	}
	if f.silent {
		return fmt.Errorf("no answer from %s", ip)
	}
	_, err := f.find(link)
	return err
}

func (f *fake) Uptime() time.Duration { return f.uptime }

// ipState is what IP has on the links, as text.
func (f *fake) ipState() string {
	var lines []string
	for link, l := range f.ip {
		for _, a := range l.Addresses {
			lines = append(lines, fmt.Sprintf("%s: %s valid %d preferred %d", link, a, a.Valid, a.Preferred))
		}
		for _, r := range l.Routes {
			lines = append(lines, fmt.Sprintf("%s: %s", link, r))
		}
		for _, n := range l.Neighbours {
			lines = append(lines, fmt.Sprintf("%s: %s", link, n))
		}
	}
	for link, rules := range f.policy {
		for _, r := range rules {
			lines = append(lines, fmt.Sprintf("rule %s iif %s", r, link))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}
