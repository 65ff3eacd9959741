package main

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// topSample is what is known of one VM at a moment. Counters only grow.
type topSample struct {
	Name    string
	State   string
	CPUs    int
	CPU     time.Duration // of the host's, since it began
	Memory  int64         // resident, in bytes
	Disk    traffic
	Network traffic // of all cards, as the guest sees it
}

// traffic is a pair of byte counts, or of bytes per second.
type traffic struct{ In, Out int64 }

func (t traffic) sum() int64 { return t.In + t.Out }

// topRow is a VM as it is shown.
type topRow struct {
	topSample
	load    float64 // of one CPU
	disk    traffic // per second
	network traffic // per second
	history []float64
}

// topHistory is how many loads a row's graph goes back.
const topHistory = 40

// topColumn is what a table is sorted by.
type topColumn int

const (
	byName topColumn = iota
	byCPU
	byMemory
	byDisk
	byNetwork
)

// topTable makes rows of samples. Rates are those between the last two.
type topTable struct {
	rows     []topRow
	taken    time.Time // when the last samples were
	column   topColumn
	reverse  bool
	selected string // name of the row that keys are about; "": the first
}

// update takes new samples in. VMs that are no longer there are forgotten.
func (t *topTable) update(samples []topSample, now time.Time) {
	before := map[string]topRow{}
	for _, r := range t.rows {
		before[r.Name] = r
	}
	elapsed := now.Sub(t.taken).Seconds()
	t.taken = now
	t.rows = t.rows[:0:0]
	for _, s := range samples {
		row := topRow{topSample: s}
		if old, ok := before[s.Name]; ok && elapsed > 0 {
			row.history = old.history
			if s.CPU >= old.CPU { // else it is another VM of the name
				row.load = (s.CPU - old.CPU).Seconds() / elapsed
				row.disk = rate(old.Disk, s.Disk, elapsed)
				row.network = rate(old.Network, s.Network, elapsed)
			}
		}
		row.history = append(slices.Clone(row.history), row.load)
		row.history = row.history[max(0, len(row.history)-topHistory):]
		t.rows = append(t.rows, row)
	}
	t.sort()
}

func rate(before, now traffic, seconds float64) traffic {
	per := func(a, b int64) int64 { return int64(float64(max(0, b-a)) / seconds) }
	return traffic{In: per(before.In, now.In), Out: per(before.Out, now.Out)}
}

// sortBy sorts by a column, by the same one again the other way round.
func (t *topTable) sortBy(c topColumn) {
	t.reverse = c == t.column && !t.reverse
	t.column = c
	t.sort()
}

// sort puts the largest first, and names in their order.
func (t *topTable) sort() {
	slices.SortStableFunc(t.rows, func(a, b topRow) int {
		order := t.compare(a, b)
		if t.reverse {
			order = -order
		}
		return cmp.Or(order, strings.Compare(a.Name, b.Name))
	})
}

func (t *topTable) compare(a, b topRow) int {
	switch t.column {
	case byCPU:
		return cmp.Compare(b.load, a.load)
	case byMemory:
		return cmp.Compare(b.Memory, a.Memory)
	case byDisk:
		return cmp.Compare(b.disk.sum(), a.disk.sum())
	case byNetwork:
		return cmp.Compare(b.network.sum(), a.network.sum())
	}
	return strings.Compare(a.Name, b.Name)
}

// cursor is the index of the selected row; -1 where there is none.
func (t *topTable) cursor() int {
	i := slices.IndexFunc(t.rows, func(r topRow) bool { return r.Name == t.selected })
	if i < 0 && len(t.rows) > 0 {
		return 0
	}
	return i
}

// move selects a row that is some rows away.
func (t *topTable) move(by int) {
	if len(t.rows) == 0 {
		return
	}
	t.selected = t.rows[min(max(0, t.cursor()+by), len(t.rows)-1)].Name
}

// graph is a row of bars, a character for each value, newest last: values are of
// full, which fills a character.
func graph(values []float64, full float64) string {
	bars := []rune(" ▁▂▃▄▅▆▇█")
	var b strings.Builder
	for _, v := range values {
		i := 0
		if full > 0 {
			i = int(v/full*float64(len(bars)-1) + 0.5)
		}
		b.WriteRune(bars[min(max(0, i), len(bars)-1)])
	}
	return b.String()
}
