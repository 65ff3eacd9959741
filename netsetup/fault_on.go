//go:build vmrun_fault

package netsetup

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// faultVariable names the folder by which a test steers a build with the tag
// vmrun_fault. No other build heeds it. In the folder may be
//
//   - passed: each point's name is appended to it,
//   - stop: the name of the point that a process is to stop at,
//   - reached: a FIFO, which whoever stops writes its process id to.
const faultVariable = "VMRUN_FAULT"

// faultPoint stops for good at the point that the test has named: it waits for
// its SIGKILL, and goes no step further.
func faultPoint(m moment, o op) {
	dir := os.Getenv(faultVariable)
	if dir == "" {
		return
	}
	name := strings.Join(append([]string{string(m)}, strings.Fields(o.String())...), " ")
	notePoint(dir, name)
	stop, err := os.ReadFile(filepath.Join(dir, "stop"))
	if err != nil || string(stop) != name {
		return
	}
	if err := os.WriteFile(filepath.Join(dir, "reached"), fmt.Appendln(nil, os.Getpid()), 0); err != nil {
		panic(err)
	}
	for {
		time.Sleep(time.Hour)
	}
}

// notePoint writes a point down where the test collects them.
func notePoint(dir, name string) {
	f, err := os.OpenFile(filepath.Join(dir, "passed"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return
	}
	defer f.Close()
	if _, err := f.WriteString(name + "\n"); err != nil {
		panic(err)
	}
}

// faultEnvironment is what the keeper inherits, which gets no other environment.
func faultEnvironment() []string {
	return []string{faultVariable + "=" + os.Getenv(faultVariable)}
}
