package netsetup

// moment is when, beside an op, a test kills the process.
type moment string

const (
	rightBefore moment = "before"
	rightAfter  moment = "after"
)
