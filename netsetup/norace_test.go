//go:build !race

package netsetup

import "time"

// adoptionLimit is how long a network may be without its keeper.
const adoptionLimit = time.Second
