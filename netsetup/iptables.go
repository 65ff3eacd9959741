package netsetup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// iptablesTimeout bounds one process, which may wait for the lock that all
// iptables of a host share.
const iptablesTimeout = 20 * time.Second

// backends are the commands that may carry the rules, best first: the
// distribution's choice, then each kind by name.
var backends = []string{"iptables", "iptables-legacy", "iptables-nft"}

// Backend takes the first command whose NAT table works on this kernel. Docker's
// chain counts only where packets come through it.
func (h *host) Backend() (string, bool, error) {
	var causes []string
	for _, command := range backends {
		if _, err := exec.LookPath(command); err != nil {
			continue
		}
		docker := make(chan bool, 1) // asked meanwhile: a process costs milliseconds
		go func() { docker <- h.iptables(command, "", "-C", "FORWARD", "-j", "DOCKER-USER") == nil }()
		err := h.iptables(command, "", "-t", "nat", "-S", "POSTROUTING")
		if leads := <-docker; err == nil {
			return command, leads, nil
		}
		causes = append(causes, err.Error())
	}
	if len(causes) == 0 {
		return "", false, &MissingError{Feature: "iptables", Reason: "iptables is not installed"}
	}
	return "", false, &MissingError{Feature: "iptables", Reason: "iptables does not work on this kernel: " + strings.Join(causes, "; ")}
}

// AddRules feeds all chains to one process.
func (h *host) AddRules(command string, chains []chain) error {
	return h.iptables(command+"-restore", restoreScript(chains), "--noflush", "--wait")
}

// DelRules removes all chains by one process. If somebody else has removed a
// part of them, it goes through them one by one.
func (h *host) DelRules(command string, chains []chain) error {
	if h.iptables(command+"-restore", deleteScript(chains), "--noflush", "--wait") == nil {
		return nil
	}
	var errs []error
	for _, c := range chains {
		errs = append(errs, h.delChain(command, c))
	}
	return errors.Join(errs...)
}

// delChain removes what is left of a chain, jumps first. A jump that is not
// there is no failure; one that could not be removed shows when the chain can't
// be either.
func (h *host) delChain(command string, c chain) error {
	run := func(args ...string) error {
		return h.iptables(command, "", append([]string{"--wait", "-t", c.Table}, args...)...)
	}
	if err := run("-S", c.Name); isAbsent(err) {
		return nil // and with it went all jumps
	} else if err != nil {
		return err
	}
	for _, jump := range c.Hooks {
		for run(append([]string{"-D", jump.From}, strings.Fields(jump.rule(c.Name))...)...) == nil {
		}
	}
	return errors.Join(run("-F", c.Name), run("-X", c.Name))
}

// isAbsent tells the exit code for a chain or rule that is not there (1) from
// iptables not working (3 and up, or not even started).
func isAbsent(err error) bool {
	exit, ok := errors.AsType[*exec.ExitError](err)
	return ok && exit.ExitCode() == 1
}

// iptables runs one process of the family. It holds a copy of the network's
// lock: should the keeper be killed, whoever cleans up after it waits until
// this child, too, has had its way.
func (h *host) iptables(command, input string, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), iptablesTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, command, args...)
	cmd.Stdin = strings.NewReader(input)
	if h.lock != nil {
		cmd.ExtraFiles = []*os.File{h.lock}
	}
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("run %s: %w: %s", command, err, firstLine(errOut.String()))
	}
	return nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}
