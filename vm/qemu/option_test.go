package qemu

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// parse reads an option as QEMU's opt parser does: a single comma ends a
// value, a doubled one stands for itself.
func parse(s string) []pair {
	var pairs []pair
	for rest := s + ","; rest != ""; {
		var value strings.Builder
		for {
			i := strings.IndexByte(rest, ',')
			value.WriteString(rest[:i])
			rest = rest[i+1:]
			if !strings.HasPrefix(rest, ",") || rest == "," && !strings.HasSuffix(s, ",") {
				break
			}
			value.WriteByte(',')
			rest = rest[1:]
		}
		key, v, found := strings.Cut(value.String(), "=")
		if !found {
			key, v = "", key
		}
		pairs = append(pairs, pair{key, v})
	}
	return pairs
}

func TestOption(t *testing.T) {
	for want, pairs := range map[string][]pair{
		"guest=a,,b":              {{"guest", "a,b"}},
		"tap,id=n0,fd=3":          {{"", "tap"}, {"id", "n0"}, {"fd", "3"}},
		"virtio-net-pci,romfile=": {{"", "virtio-net-pci"}, {"romfile", ""}},
		"a=,,,,,b==":              {{"a", ",,"}, {"b", "="}},
	} {
		if got := option(pairs...); got != want {
			t.Errorf("option(%v) = %q, want %q", pairs, got, want)
		}
	}
}

// FuzzOption checks that no value can add a key or change its neighbour.
func FuzzOption(f *testing.F) {
	for _, s := range []string{"", "web", "a,b", ",", ",,", "a,file=/etc/shadow", "x=y", ",,,=,", "\n", "\xff"} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		want := []pair{{"first", a}, {"second", b}, {"last", "x"}}
		if got := parse(option(want...)); !slices.Equal(got, want) {
			t.Errorf("QEMU reads %q as %v, want %v", option(want...), got, want)
		}
	})
}

// FuzzArgs checks that texts from outside change no option but their own.
func FuzzArgs(f *testing.F) {
	for _, s := range []string{"web", "a,b", "-S", "x,readonly=on", ""} {
		f.Add(s, s, s)
	}
	shape := func(c Config) []string {
		var keys []string
		for arg := range slices.Chunk(c.Args()[4:], 2) {
			keys = append(keys, arg[0])
			switch arg[0] {
			case "-cpu", "-kernel", "-initrd", "-append":
			default:
				if len(arg) > 1 {
					for _, p := range parse(arg[1]) {
						keys = append(keys, p.key)
					}
				}
			}
		}
		return keys
	}
	build := func(name, kernel, host string) []string {
		c := direct()
		c.Paused, c.NoReboot = false, false
		c.Name, c.Kernel, c.Cmdline = name, kernel, kernel
		c.NICs[0].Netdev = UserNet{Hostname: host}
		return shape(c)
	}
	want := build("x", "y", "z")
	f.Fuzz(func(t *testing.T, name, kernel, host string) {
		if kernel == "" || host == "" {
			t.Skip("these leave an option out")
		}
		if diff := cmp.Diff(want, build(name, kernel, host)); diff != "" {
			t.Errorf("options changed:\n%s", diff)
		}
	})
}
