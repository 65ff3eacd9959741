package profiles

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Size is a number of bytes. In text it is a whole number and a unit: B, KiB,
// MiB, GiB, TiB, or KB, MB, GB, TB in powers of ten. A number without a unit
// is refused, and so is "512M", which means one thing to some programs and
// another to others.
type Size int64

// The binary units.
const (
	KiB Size = 1 << (10 * (iota + 1))
	MiB
	GiB
	TiB
)

// sizeUnits is ordered from the largest to the smallest.
var sizeUnits = []struct {
	name  string
	bytes Size
}{
	{"TiB", TiB}, {"TB", 1e12},
	{"GiB", GiB}, {"GB", 1e9},
	{"MiB", MiB}, {"MB", 1e6},
	{"KiB", KiB}, {"KB", 1e3},
	{"B", 1},
}

// ParseSize reads a size such as "512MiB". A blank before the unit is allowed.
func ParseSize(s string) (Size, error) {
	digits := s[:len(s)-len(strings.TrimLeft(s, "0123456789"))]
	if digits == "" {
		return 0, fmt.Errorf("%s is not a size: write a number and a unit, such as \"512MiB\"", quote(s))
	}
	unit, err := parseUnit(s, strings.TrimPrefix(s[len(digits):], " "))
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if errors.Is(err, strconv.ErrRange) || n > math.MaxInt64/int64(unit) {
		return 0, fmt.Errorf("%s is too large: at most 8 EiB", quote(s))
	}
	return Size(n) * unit, nil
}

// parseUnit finds the unit called name, which ends the size s.
func parseUnit(s, name string) (Size, error) {
	var near []string
	for _, u := range sizeUnits {
		if name == u.name {
			return u.bytes, nil
		}
		if name != "" && strings.EqualFold(name[:1], u.name[:1]) {
			near = append(near, u.name)
		}
	}
	number := strings.TrimSuffix(s, name)
	switch {
	case name == "":
		return 0, fmt.Errorf("%s has no unit: write %q or %q", quote(s), number+"MiB", number+"GiB")
	case name[0] == '.' || name[0] == ',':
		return 0, fmt.Errorf("%s is not a whole number: use a smaller unit", quote(s))
	case len(near) == 2:
		return 0, fmt.Errorf("%s has the unknown unit %s: write %s (powers of two) or %s (powers of ten)", quote(s), quote(name), near[0], near[1])
	}
	return 0, fmt.Errorf("%s has the unknown unit %s: known are KiB, MiB, GiB, TiB, KB, MB, GB, TB and B", quote(s), quote(name))
}

// String gives the size in the unit that makes the number smallest without
// rounding. ParseSize reads it back as the same size unless it is negative.
func (s Size) String() string {
	number, unit := int64(s), "B"
	for _, u := range sizeUnits {
		n := int64(s / u.bytes)
		// Compared below zero, where the smallest number has a place too.
		if s != 0 && s%u.bytes == 0 && min(n, -n) > min(number, -number) {
			number, unit = n, u.name
		}
	}
	return strconv.FormatInt(number, 10) + unit
}

// UnmarshalText reads what ParseSize reads.
func (s *Size) UnmarshalText(text []byte) error {
	size, err := ParseSize(string(text))
	if err != nil {
		return err
	}
	*s = size
	return nil
}

// MarshalText writes what String gives.
func (s Size) MarshalText() ([]byte, error) {
	return []byte(s.String()), nil
}
