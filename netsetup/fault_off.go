//go:build !vmrun_fault

package netsetup

// faultPoint is where a build for tests can be stopped and killed, see
// fault_on.go. Here it is nothing.
func faultPoint(moment, op) {}

// faultEnvironment is what the keeper of such a build inherits.
func faultEnvironment() []string { return nil }
