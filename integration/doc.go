// Package integration tests vmrun as its users meet it: the real binary, a real
// kernel, a real QEMU with real guests. It has no code of its own; the tests are
// in its _test files, one for each topic, and what they stand on is in the
// packages below internal:
//
//   - sandbox runs a test in namespaces of its own, or under another kernel,
//   - hoststate tells as text what a host looks like, and compares,
//   - world builds what lies around a host: its LAN, its neighbours, a trunk,
//   - guest makes a guest that owes nothing to vmrun,
//   - dhcpload asks a DHCP server for many leases,
//   - feature finds out by doing what this machine can.
//
// scripts/setup test installs what the tests need. A test that lacks something
// is skipped and says what; VMRUN_TEST_MUST, a list of features with commas or
// "all", makes that a failure. VMRUN_TEST_BINARY names a vmrun to test in place
// of the one that the tests build. With VMRUN_TEST_LONG=1 tests wait longer for
// what must not happen.
//
// Each test runs in a sandbox and takes the host's state before and after. It
// neither needs nor touches the machine's own network, and its processes end
// with it. A test of several sandboxes is parallel as they are (beside), unless
// it loads the machine or judges times.
package integration
