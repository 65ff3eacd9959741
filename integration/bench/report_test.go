package main

import "testing"

func TestVerdict(t *testing.T) {
	r := results{
		vmrun:  {totalLaunch: {50, 60, 70}, stopToGone: {90}, rulesPerVM: {0}, growth: {0.1}, dhcpRate: {4000}, restoreGain: {9}},
		script: {totalLaunch: {59}, stopToGone: {80, 100}, dhcpRate: {3000}},
	}
	for _, tt := range []struct {
		row  row
		want string
	}{
		{row{measure: totalLaunch, unit: "ms"}, "–"},
		{row{measure: totalLaunch, unit: "ms", limit: 60}, "≤ 60 ms: met"},
		{row{measure: totalLaunch, unit: "ms", limit: 59.9}, "≤ 59.9 ms: **missed**"},
		{row{measure: totalLaunch, unit: "ms", race: script}, "≤ script: **missed**"},
		{row{measure: stopToGone, unit: "ms", race: script}, "≤ script: met"},
		{row{measure: rulesPerVM, none: true}, "0: met"},
		{row{measure: portsGone, unit: "ms", limit: 5}, "≤ 5 ms: not measured"},
		{row{measure: portsGone}, "–"},
		{row{measure: totalLaunch, race: scp}, "≤ scp: not measured"},
		{row{measure: totalLaunch, unit: "ms", limit: 60, race: script}, "≤ 60 ms: met; ≤ script: **missed**"},
		{row{measure: stopToGone, unit: "ms", limit: 80, race: script}, "≤ 80 ms: **missed**; ≤ script: met"},
		{row{measure: stopToGone, unit: "ms", limit: 90, race: scp}, "≤ 90 ms: met; ≤ scp: not measured"},
		{row{measure: growth, none: true}, "0: **missed**"},
		{row{measure: dhcpRate, race: script, more: true}, "≥ script: met"},
		{row{measure: dhcpRate, race: script}, "≤ script: **missed**"},
		{row{measure: restoreGain, unit: "×", limit: 10, more: true}, "≥ 10 ×: **missed**"},
		{row{measure: restoreGain, unit: "×", limit: 8, more: true}, "≥ 8 ×: met"},
	} {
		if got := r.verdict(tt.row); got != tt.want {
			t.Errorf("verdict of %+v: %q, want %q", tt.row, got, tt.want)
		}
	}
}

// TestOverhead: the overhead is against the bare QEMU of the same round.
func TestOverhead(t *testing.T) {
	r := results{}
	r.add(map[column]sample{vmrun: {totalLaunch: 80}, script: {totalLaunch: 70}, bare: {totalLaunch: 45}})
	r.add(map[column]sample{vmrun: {totalLaunch: 180}, script: {totalLaunch: 165}, bare: {totalLaunch: 150}})
	for c, want := range map[column][2]float64{vmrun: {35, 30}, script: {25, 15}} {
		if got := r[c][overhead]; len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
			t.Errorf("overhead of %s: %v, want %v", c, got, want)
		}
	}
	if got := r[bare][overhead]; got != nil {
		t.Errorf("overhead of bare QEMU: %v", got)
	}
}
