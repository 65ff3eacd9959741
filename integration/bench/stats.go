package main

import "slices"

// spread sums up measured values.
type spread struct{ low, median, high float64 } // the quartiles

// newSpread interpolates between neighbours; it needs at least one value.
func newSpread(values []float64) spread {
	sorted := slices.Sorted(slices.Values(values))
	at := func(share float64) float64 {
		place := share * float64(len(sorted)-1)
		i := int(place)
		if i+1 == len(sorted) {
			return sorted[i]
		}
		return sorted[i] + (place-float64(i))*(sorted[i+1]-sorted[i])
	}
	return spread{low: at(0.25), median: at(0.5), high: at(0.75)}
}
