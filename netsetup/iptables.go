package netsetup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	goiptables "github.com/coreos/go-iptables/iptables"
)

// iptablesTimeout bounds one process, which may wait for the lock that all
// iptables of a host share.
const iptablesTimeout = 20 * time.Second

// backends are the commands that may carry the rules, best first: the
// distribution's choice, then each kind by name.
var backends = []string{"iptables", "iptables-legacy", "iptables-nft"}

// Backend takes the first command whose NAT table works on this kernel.
func (h *host) Backend() (string, bool, error) {
	var causes []string
	for _, command := range backends {
		if _, err := exec.LookPath(command); err != nil {
			continue
		}
		if _, err := iptables(command, "", "-t", "nat", "-S", "POSTROUTING"); err != nil {
			causes = append(causes, err.Error())
			continue
		}
		_, err := iptables(command, "", "-S", "DOCKER-USER")
		return command, err == nil, nil
	}
	if len(causes) == 0 {
		return "", false, &MissingError{Feature: "iptables", Reason: "iptables is not installed"}
	}
	return "", false, &MissingError{Feature: "iptables", Reason: "iptables does not work on this kernel: " + strings.Join(causes, "; ")}
}

// AddRules feeds all chains to one process.
func (h *host) AddRules(command string, chains []chain) error {
	_, err := iptables(command+"-restore", restoreScript(chains), "--noflush", "--wait")
	return err
}

// DelRules removes all chains by one process. If somebody else has removed a
// part of them, it goes through them one by one.
func (h *host) DelRules(command string, chains []chain) error {
	if _, err := iptables(command+"-restore", deleteScript(chains), "--noflush", "--wait"); err == nil {
		return nil
	}
	var errs []error
	for _, c := range chains {
		errs = append(errs, delChain(command, c))
	}
	return errors.Join(errs...)
}

// delChain removes what is left of a chain, jumps first.
func delChain(command string, c chain) error {
	ipt, err := goiptables.New(goiptables.Path(command), goiptables.Timeout(int(iptablesTimeout/time.Second)))
	if err != nil {
		return fmt.Errorf("run %s: %w", command, err)
	}
	if there, err := ipt.ChainExists(c.Table, c.Name); err != nil || !there {
		return err
	}
	var errs []error
	for _, h := range c.Hooks {
		if there, err := ipt.ChainExists(c.Table, h.From); err != nil || !there {
			continue // with Docker's chain went our jump from it
		}
		errs = append(errs, ipt.DeleteIfExists(c.Table, h.From, strings.Fields(h.rule(c.Name))...))
	}
	return errors.Join(append(errs, ipt.ClearAndDeleteChain(c.Table, c.Name))...)
}

// iptables runs one process of the family and returns its output.
func iptables(command, input string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), iptablesTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, command, args...)
	cmd.Stdin = strings.NewReader(input)
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
