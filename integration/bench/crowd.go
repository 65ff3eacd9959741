package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/netsetup"
)

// crowd is how many ports a network gets, one after the other, and few over how
// many of them a mean is taken.
const (
	crowd = 100
	few   = 5
)

// runCrowd lets many VMs come to one network of vmrun's and leave it again,
// without QEMU.
func (b *bench) runCrowd(ctx context.Context) (s sample, err error) {
	h := netsetup.Host{Executable: b.host.Executable, Runtime: b.host.Dirs.Runtime, State: b.host.Dirs.State}
	var ports []*netsetup.Port
	defer func() { err = errors.Join(err, closePorts(ports)) }()
	times := []time.Time{time.Now()}
	rules := 0
	for i := range crowd {
		port := *b.plan.NICs[0].Port
		port.VM, port.MAC[5] = fmt.Sprintf("vm%d", i), byte(i)
		p, err := netsetup.Attach(ctx, h, *b.plan.NICs[0].Spec, port)
		if err != nil {
			return nil, err
		}
		ports = append(ports, p)
		times = append(times, time.Now())
		if i == 0 {
			if rules, err = countRules(); err != nil {
				return nil, err
			}
			times[1] = time.Now()
		}
	}
	if _, err := b.execs.next(ctx, b.host.Executable); err != nil {
		return nil, err
	}
	s = sample{}
	s.attached(times)
	now, err := countRules()
	if err != nil {
		return nil, err
	}
	s[rulesPerVM] = float64(now-rules) / (crowd - 1)
	if s[firstInKeeper], err = b.keeperTime(); err != nil {
		return nil, err
	}
	return s, s.leave(&ports)
}

// attached notes what ports cost; times are when the first began and each was there.
func (s sample) attached(times []time.Time) {
	mean := func(from int) float64 { return times[from+few].Sub(times[from]).Seconds() * 1000 / few }
	s[oneMore] = mean(1)
	s[hundredth] = mean(len(times) - 1 - few)
	s[growth] = s[hundredth] / s[oneMore]
}

// leave takes all ports but one away at once, and then that one.
func (s sample) leave(ports *[]*netsetup.Port) error {
	last, others := (*ports)[:1], (*ports)[1:]
	*ports = nil
	asked := time.Now()
	err := closePorts(others)
	gone := time.Now()
	s[portsGone] = gone.Sub(asked).Seconds() * 1000 / float64(len(others))
	err = errors.Join(err, closePorts(last))
	s.milliseconds(lastGone, gone, time.Now())
	return err
}

func closePorts(ports []*netsetup.Port) error {
	errs := make([]error, len(ports))
	var all sync.WaitGroup
	for i, p := range ports {
		all.Go(func() { errs[i] = p.Close() })
	}
	all.Wait()
	return errors.Join(errs...)
}

// countRules is how many lines the host's firewalls have.
func countRules() (int, error) {
	out, err := exec.Command("sh", "-c", "nft list ruleset && iptables-legacy-save").Output()
	if err != nil {
		return 0, fmt.Errorf("count rules: %w", err)
	}
	return strings.Count(string(out), "\n"), nil
}

// keeperTime is what the keeper took for its first member, in milliseconds,
// from its log: the network, and then the port.
func (b *bench) keeperTime() (float64, error) {
	logs, err := filepath.Glob(filepath.Join(b.host.Dirs.Runtime, "nets/*/keeper.log"))
	if err != nil || len(logs) != 1 {
		return 0, fmt.Errorf("read keeper's log: %v, %w", logs, err)
	}
	f, err := os.Open(logs[0])
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var took time.Duration
	var up time.Time
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var l struct {
			Time      time.Time
			Msg, Took string
		}
		if json.Unmarshal(lines.Bytes(), &l) != nil {
			continue
		}
		switch {
		case l.Msg == "up":
			up = l.Time
			if took, err = time.ParseDuration(l.Took); err != nil {
				return 0, err
			}
		case l.Msg == "member joins" && !up.IsZero():
			took += l.Time.Sub(up)
			up = time.Time{}
		}
	}
	return took.Seconds() * 1000, nil
}

// runScriptCrowd is the same by hand.
func (b *bench) runScriptCrowd(ctx context.Context) (sample, error) {
	cmd := exec.Command(b.script, b.dir, b.firmware, strconv.Itoa(crowd))
	cmd.Env = b.env
	p, err := startProgram(cmd)
	if err != nil {
		return nil, err
	}
	begun, err := p.await(ctx, "begin")
	if err != nil {
		return nil, err
	}
	times := []time.Time{begun}
	for i := range crowd {
		at, err := p.await(ctx, fmt.Sprintf("port %d", i+1))
		if err != nil {
			return nil, err
		}
		times = append(times, at)
	}
	s := sample{}
	s.attached(times)
	asked := time.Now()
	if err := p.cmd.Process.Signal(unix.SIGTERM); err != nil {
		return nil, err
	}
	gone, err := p.await(ctx, "ports gone")
	if err != nil {
		return nil, err
	}
	s[portsGone] = gone.Sub(asked).Seconds() * 1000 / (crowd - 1)
	all, err := p.await(ctx, "all gone")
	if err != nil {
		return nil, err
	}
	s.milliseconds(lastGone, gone, all)
	return s, p.cmd.Wait()
}
