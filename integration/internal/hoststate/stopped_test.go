package hoststate

import "testing"

func TestStopped(t *testing.T) {
	for states, want := range map[string]bool{
		"":    true, // there is none any more
		"Z":   true,
		"ZX":  true,
		"T":   true,
		"TtT": true,
		"TDT": true, // one waits for its child
		"D":   false,
		"DD":  false,
		"ZD":  false,
		"TS":  false,
		"TDR": false,
		"I":   false,
	} {
		if got := stopped(states); got != want {
			t.Errorf("threads %q: stopped %v, want %v", states, got, want)
		}
	}
}
