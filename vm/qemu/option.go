package qemu

import "strings"

// pair is one key=value of an option. A pair without a key stands for itself:
// the driver or the type that some options begin with.
type pair struct{ key, value string }

// option joins pairs to the text of one QEMU option. It is the only place
// where such text is made: QEMU reads a comma in a value as the start of the
// next key unless it is doubled (qemu(1), "-drive file=").
func option(pairs ...pair) string {
	var b strings.Builder
	for i, p := range pairs {
		if i > 0 {
			b.WriteByte(',')
		}
		if p.key != "" {
			b.WriteString(p.key)
			b.WriteByte('=')
		}
		b.WriteString(strings.ReplaceAll(p.value, ",", ",,"))
	}
	return b.String()
}

// on is the pair of a switch that is left out where it is off.
func on(key string, value bool) []pair {
	if !value {
		return nil
	}
	return []pair{{key, "on"}}
}

// set is the pair of a key that is left out where it has no value.
func set(key, value string) []pair {
	if value == "" {
		return nil
	}
	return []pair{{key, value}}
}
