package main

import "testing"

func TestVerdict(t *testing.T) {
	r := results{
		vmrun:  {totalLaunch: {50, 60, 70}, stopToGone: {90}},
		script: {totalLaunch: {59}, stopToGone: {80, 100}},
	}
	for _, tt := range []struct {
		row  row
		want string
	}{
		{row{measure: totalLaunch, unit: "ms"}, "–"},
		{row{measure: totalLaunch, unit: "ms", limit: 60}, "≤ 60 ms: met"},
		{row{measure: totalLaunch, unit: "ms", limit: 59.9}, "≤ 59.9 ms: **missed**"},
		{row{measure: totalLaunch, unit: "ms", race: true}, "≤ script: **missed**"},
		{row{measure: stopToGone, unit: "ms", race: true}, "≤ script: met"},
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
