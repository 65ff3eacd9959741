//go:build race

package netsetup

import "time"

// adoptionLimit is how long a network may be without its keeper. Under the race
// detector programs are several times slower.
const adoptionLimit = 30 * time.Second
