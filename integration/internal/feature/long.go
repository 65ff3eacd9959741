package feature

import "os"

// longVariable makes tests take the time that they need for a full proof, as
// `make soak` does. Without it they do a part, in bounded time.
const longVariable = "VMRUN_TEST_LONG"

// Long tells whether a test shall do all that it can rather than a part.
func Long() bool { return os.Getenv(longVariable) != "" }

// Amount is one of two amounts of work: the smaller one unless Long.
func Amount(short, long int) int {
	if Long() {
		return long
	}
	return short
}
