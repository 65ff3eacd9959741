package profiles

import (
	"math"
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

func TestParseSize(t *testing.T) {
	tests := map[string]Size{
		"0B":                   0,
		"1B":                   1,
		"1KB":                  1000,
		"1KiB":                 1024,
		"512 MiB":              512 << 20,
		"512MB":                512e6,
		"010GB":                10e9,
		"3TiB":                 3 << 40,
		"3TB":                  3e12,
		"9223372036854775807B": math.MaxInt64,
		"8388607TiB":           8388607 << 40,
	}
	for text, want := range tests {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", text, int64(got), err, int64(want))
		}
	}
	for _, text := range []string{
		"", " ", "B", "1", "1K", "1k", "1kib", "1 kB", "1  KiB", " 1KiB", "1KiB ", "-1B", "+1B", "1e3B",
		"0x10B", "1_000B", "1.0GiB", "1PiB", "9223372036854775808B", "8388608TiB", "99999999999999999999B", "１B",
	} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("ParseSize(%q) = %v, want an error", text, got)
		}
	}
}

func TestSizeString(t *testing.T) {
	tests := map[Size]string{
		0: "0B", 1: "1B", 1000: "1KB", 1023: "1023B", 1024: "1KiB", 1536: "1536B", 1 << 20: "1MiB",
		1e6: "1MB", 512 * MiB: "512MiB", 1024 * TiB: "1024TiB", -2 * GiB: "-2GiB", math.MinInt64: "-8388608TiB",
	}
	for size, want := range tests {
		if got := size.String(); got != want {
			t.Errorf("Size(%d) = %q, want %q", int64(size), got, want)
		}
	}
}

func TestSizeRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		unit := rapid.SampledFrom(sizeUnits).Draw(t, "unit")
		want := Size(rapid.Int64Range(0, math.MaxInt64/int64(unit.bytes)).Draw(t, "number")) * unit.bytes
		text, err := want.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		var got Size
		if err := got.UnmarshalText(text); err != nil || got != want {
			t.Fatalf("%d is written as %s and read as %d, %v", int64(want), text, int64(got), err)
		}
	})
}

func TestForwardRoundTrip(t *testing.T) {
	addrs := []string{"127.0.0.1", "0.0.0.0", "::", "::1", "fd00::5", "::ffff:10.0.0.1"}
	rapid.Check(t, func(t *rapid.T) {
		want := Forward{
			HostAddr:  netip.MustParseAddr(rapid.SampledFrom(addrs).Draw(t, "addr")),
			HostPort:  rapid.Uint16Min(1).Draw(t, "host"),
			GuestPort: rapid.Uint16Min(1).Draw(t, "guest"),
			Proto:     rapid.SampledFrom([]string{"tcp", "udp"}).Draw(t, "proto"),
		}
		got, err := ParseForward(want.String())
		if err != nil || got != want {
			t.Fatalf("%v is read as %v, %v", want, got, err)
		}
	})
}

// TestFreeRange compares the default pool with counting addresses one by one.
func TestFreeRange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bits := rapid.IntRange(24, 30).Draw(t, "bits")
		subnet := netip.PrefixFrom(fromNumber(rapid.Uint32().Draw(t, "subnet")), bits).Masked()
		host := func(label string) netip.Addr {
			start, size := number(subnet.Addr()), uint32(1)<<(32-bits)
			return fromNumber(start + rapid.Uint32Range(1, size-2).Draw(t, label))
		}
		n := Network{Subnet: subnet, Address: netip.PrefixFrom(host("address"), bits), Gateway: host("gateway")}
		first, last := n.freeRange()

		longest, run := 0, 0
		for addr := subnet.Addr(); subnet.Contains(addr); addr = addr.Next() {
			run++
			if checkHost(addr, subnet) != nil || addr == n.Address.Addr() || addr == n.Gateway {
				run = 0
			}
			longest = max(longest, run)
		}
		if !first.IsValid() {
			if longest != 0 {
				t.Fatalf("no range in %v, want one of %d", subnet, longest)
			}
			return
		}
		for addr := first; ; addr = addr.Next() {
			if err := checkHost(addr, subnet); err != nil || addr == n.Address.Addr() || addr == n.Gateway {
				t.Fatalf("%v to %v holds %v: taken, or %v", first, last, addr, err)
			}
			if addr == last {
				break
			}
		}
		if got := int(number(last)-number(first)) + 1; got != longest {
			t.Fatalf("%v to %v are %d addresses, want %d", first, last, got, longest)
		}
	})
}

func TestDistance(t *testing.T) {
	tests := []struct {
		a, b string
		want int
	}{
		{"memory", "memory", 0}, {"memry", "memory", 1}, {"memroy", "memory", 1}, {"memorie", "memory", 2},
		{"", "ab", 2}, {"ab", "", 2}, {"kwm", "kvm", 1}, {"abcd", "dcba", 3}, {"ca", "abc", 3},
	}
	for _, test := range tests {
		if got := distance(test.a, test.b, 10); got != test.want {
			t.Errorf("distance(%q, %q) = %d, want %d", test.a, test.b, got, test.want)
		}
	}
}

func TestQuote(t *testing.T) {
	tests := map[string]string{
		"web":      `"web"`,
		"a\x1b[0m": `"a\x1b[0m"`,
		"0ä0123456789012345678901234567890123456789012345678901234567ääääää"[:64]: `"0ä012345678901234567890123456789012345678901234567890123456"… (64 bytes)`,
	}
	for text, want := range tests {
		if got := quote(text); got != want {
			t.Errorf("quote(%q) = %s, want %s", text, got, want)
		}
	}
}
