package firewall

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// Timeout bounds one process of iptables, which may wait for the lock that all
// of a host share.
const Timeout = 20 * time.Second

// commands are those that may carry all rules, best first: the distribution's
// choice, then each kind by name.
var commands = []Backend{IPTables, IPTablesLegacy, IPTablesNFT}

// workingCommand finds the first command whose NAT table works on this kernel,
// and whether packets come through Docker's chain there.
func (h *Host) workingCommand() (Backend, bool, error) {
	var causes []string
	for _, command := range commands {
		if _, err := exec.LookPath(string(command)); err != nil {
			continue
		}
		docker := make(chan bool, 1) // asked meanwhile: a process costs milliseconds
		go func() {
			_, err := h.run(string(command), "", "--wait", "-C", "FORWARD", "-j", dockerChain)
			docker <- err == nil
		}()
		_, err := h.run(string(command), "", "--wait", "-t", "nat", "-S", "POSTROUTING")
		if leads := <-docker; err == nil {
			return command, leads, nil
		}
		causes = append(causes, err.Error())
	}
	if len(causes) == 0 {
		return "", false, errors.New("iptables is not installed")
	}
	return "", false, errors.New("iptables does not work on this kernel: " + strings.Join(causes, "; "))
}

// addJumped feeds all chains to one process.
func (h *Host) addJumped(b Backend, chains []Jumped) error {
	_, err := h.run(string(b)+"-restore", restoreScript(chains), "--noflush", "--wait")
	return err
}

// delJumped removes all chains by one process. If somebody else has removed a
// part of them, it goes through them one by one.
func (h *Host) delJumped(b Backend, chains []Jumped) error {
	if _, err := h.run(string(b)+"-restore", deleteScript(chains), "--noflush", "--wait"); err == nil {
		return nil
	}
	var errs []error
	for _, c := range chains {
		errs = append(errs, h.delChain(b, c))
	}
	return errors.Join(errs...)
}

// delChain removes what is left of a chain, jumps first. A jump that is not
// there is no failure; one that could not be removed shows when the chain can't
// be either.
func (h *Host) delChain(b Backend, c Jumped) error {
	run := func(args ...string) error {
		_, err := h.run(string(b), "", append([]string{"--wait", "-t", c.Table}, args...)...)
		return err
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
	if err := run("-F", c.Name); err != nil {
		return err
	}
	if err := run("-X", c.Name); err != nil {
		return fmt.Errorf("%w (it is empty, and a rule of somebody else leads to it: see %s-save)", err, b)
	}
	return nil
}

// standIn tells whether a listing of iptables-save has all chains.
func standIn(saved string, chains []Jumped) bool {
	return !slices.ContainsFunc(chains, func(c Jumped) bool { return !c.standsIn(saved) })
}

// isAbsent tells the exit code for a chain or rule that is not there (1) from
// iptables not working (3 and up, or not even started).
func isAbsent(err error) bool {
	exit, ok := errors.AsType[*exec.ExitError](err)
	return ok && exit.ExitCode() == 1
}

// run runs one process of the family. It holds a copy of the network's lock:
// should the keeper be killed, whoever cleans up after it waits until this
// child, too, has had its way.
func (h *Host) run(command, input string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), Timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, command, args...)
	cmd.Stdin = strings.NewReader(input)
	if h.lock != nil {
		cmd.ExtraFiles = []*os.File{h.lock}
	}
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("run %s: %w: %s", command, err, firstLine(errOut.String()))
	}
	return out.String(), nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}
