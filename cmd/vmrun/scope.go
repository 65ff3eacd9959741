package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// scope is what decides whether a command needs a scope of systemd's.
type scope struct {
	runner string // path of systemd-run; "": systemd does not run
	uid    int
	cgroup string // of this process, as /proc/self/cgroup has it
}

func detectScope() scope {
	s := scope{uid: os.Geteuid()}
	if _, err := os.Stat("/run/systemd/system"); err != nil { // as sd_booted(3)
		return s
	}
	s.runner, _ = exec.LookPath("systemd-run")
	text, _ := os.ReadFile("/proc/self/cgroup")
	s.cgroup = string(text)
	return s
}

// command is a command line that runs in a scope of its own, where it needs one
// to outlive who starts it: else the end of a CI job or of a service takes all of
// its processes along. systemd-run --scope becomes the command it is given and
// leaves inherited descriptors open (systemd-run.1). A user's processes outlive a
// session by themselves (logind.conf(5), KillUserProcesses), but not a service of
// the user's own.
func (s scope) command(name string, command ...string) []string {
	own := s.uid != 0
	if s.runner == "" || own && !strings.Contains(s.cgroup, fmt.Sprintf("user@%d.service/", s.uid)) {
		return command
	}
	argv := []string{s.runner, "--scope", "--quiet", "--collect", "--description=vmrun virtual machine " + name}
	if own {
		argv = append(argv, "--user")
	}
	return append(append(argv, "--"), command...)
}
