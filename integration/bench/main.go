// Bench compares launches and teardowns of vmrun with the same done by a shell
// script, by libvirt and with QEMU alone, and measures what is done with VMs that
// run. It writes docs/benchmarks.md. It changes the network that it runs in:
// scripts/bench gives it one of its own.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vmrun/vmrun/integration/internal/hoststate"
	"github.com/vmrun/vmrun/profiles"
	"github.com/vmrun/vmrun/vm"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("bench: ")
	var o options
	flag.StringVar(&o.vmrun, "vmrun", "./vmrun", "the vmrun to measure")
	flag.StringVar(&o.script, "script", "integration/bench/script.sh", "the script to compare it with")
	flag.StringVar(&o.dir, "dir", "/run/bench", "folder to work in, which is made")
	flag.StringVar(&o.out, "out", "docs/benchmarks.md", "the report")
	flag.IntVar(&o.rounds, "rounds", 25, "how often each contender is measured")
	libvirt := flag.Bool(insideFlag, false, "only for the benchmark itself: measure libvirt's network, in namespaces of its own")
	flag.Parse()
	run := o.run
	if *libvirt {
		run = measureLibvirt
	}
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

type options struct {
	vmrun, script, dir, out string
	rounds                  int
}

func (o options) run() error {
	m, err := readMachine()
	if err != nil {
		return err
	}
	b, err := newBench(o)
	if err != nil {
		return err
	}
	r, err := b.measure(o.rounds)
	if err == nil {
		err = b.measureGuests(r, o.rounds)
	}
	if err := errors.Join(err, b.execs.close()); err != nil {
		return err
	}
	text, err := report(m, r, o.rounds)
	if err != nil {
		return err
	}
	fmt.Print(text)
	if err := os.MkdirAll(filepath.Dir(o.out), 0o755); err != nil {
		return err
	}
	return os.WriteFile(o.out, []byte(text), 0o644)
}

// bench is what all contenders share.
type bench struct {
	script   string
	dir      string
	firmware string
	host     vm.Host
	plan     *vm.Plan
	env      []string
	execs    *execs
	before   state // of the host, once the warm-up is over
}

func newBench(o options) (*bench, error) {
	executable, err := realPath(o.vmrun)
	if err != nil {
		return nil, err
	}
	b := &bench{dir: o.dir, firmware: filepath.Join(o.dir, "halt.bin")}
	if b.script, err = realPath(o.script); err != nil {
		return nil, err
	}
	if err := os.Mkdir(o.dir, 0o755); err != nil {
		return nil, err
	}
	b.env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	for _, name := range []string{"runtime", "state", "cache"} {
		b.env = append(b.env, fmt.Sprintf("VMRUN_%s_DIR=%s", strings.ToUpper(name), filepath.Join(o.dir, name)))
	}
	if b.host, err = vm.DetectHost(executable, b.env); err != nil {
		return nil, err
	}
	if b.host.QEMU, err = realPath(b.host.QEMU); err != nil {
		return nil, err
	}
	if b.plan, err = b.newPlan(); err != nil {
		return nil, err
	}
	b.execs, err = watchExecs(b.host.Executable, b.host.QEMU)
	return b, err
}

// realPath is a path as the kernel has it.
func realPath(path string) (string, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	return filepath.Abs(path)
}

// newPlan plans the VM that is measured.
func (b *bench) newPlan() (*vm.Plan, error) {
	if err := os.WriteFile(b.firmware, haltingFirmware(), 0o644); err != nil {
		return nil, err
	}
	file := filepath.Join(b.dir, "measured.toml")
	text := fmt.Sprintf(profile, b.firmware)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return nil, err
	}
	p, err := profiles.Load(file)
	if err != nil {
		return nil, err
	}
	return vm.NewPlan(p, b.host)
}

const profile = `
[machine]
accel = "tcg"
args = ["-bios", %q]

[[nics]]
network = "lan"

[networks.lan]
mode = "nat"
firewall = "nftables"
`

// haltingFirmware stops the processor at its first instruction, which is 16
// bytes below the end of the first megabyte: the guest is there and takes no
// time, as a paused one. QEMU wants 64 KiB at least.
func haltingFirmware() []byte {
	rom := make([]byte, 64<<10)
	copy(rom[len(rom)-16:], "\xfa\xf4\xeb\xfd") // cli; hlt; jmp to the hlt
	return rom
}

// timeout bounds one round of one contender.
const timeout = time.Minute

// warmups are rounds that don't count: they fill the page cache.
const warmups = 2

// crowdEvery is in which rounds what takes seconds is measured.
const crowdEvery = 3

// measure lets the contenders take turns, in the other order each round, so
// that what else the machine does meets all of them.
func (b *bench) measure(rounds int) (results, error) {
	turns := []struct {
		column column
		every  int // rounds
		run    func(context.Context) (sample, error)
	}{
		{vmrun, 1, b.runVMRun}, {script, 1, b.runScript}, {bare, 1, b.runBare}, {vmrun, 1, b.runNetwork},
		{vmrun, crowdEvery, b.runCrowd}, {script, crowdEvery, b.runScriptCrowd},
		{vmrun, crowdEvery, b.runDHCP}, {script, crowdEvery, b.runDnsmasq},
		{daemon, crowdEvery, b.runLibvirt},
	}
	r := results{}
	for i := range warmups + rounds {
		round := map[column]sample{vmrun: {}, script: {}, bare: {}, daemon: {}}
		for _, turn := range turns {
			if i > 0 && (i-warmups)%turn.every != 0 {
				continue // all are a part of the first round, and of the first that counts
			}
			s, err := b.turn(turn.run)
			if err != nil {
				return nil, fmt.Errorf("measure %s, round %d: %w", turn.column, i, err)
			}
			for m, v := range s {
				round[turn.column][m] = v
			}
		}
		slices.Reverse(turns)
		if i >= warmups {
			r.add(round)
			continue
		}
		var err error
		if b.before, err = b.state(); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// turn measures a contender once and makes sure that nothing stays behind,
// which would be a faster way to end.
func (b *bench) turn(run func(context.Context) (sample, error)) (sample, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	s, err := run(ctx)
	if err != nil || b.before.text == "" {
		return s, err
	}
	return s, b.asBefore(ctx)
}

// asBefore waits until all processes have ended that the host did not have
// before, and compares it with then.
func (b *bench) asBefore(ctx context.Context) error {
	if err := hoststate.WaitProcesses(ctx, b.before.processes); err != nil {
		return err
	}
	after, err := b.state()
	if err != nil {
		return err
	}
	if diff := hoststate.Diff(b.before.text, after.text); diff != "" {
		return fmt.Errorf("the host is not as before:\n%s", diff)
	}
	return nil
}

// state is what the host looks like.
type state struct {
	text      string
	processes []string
}

func (b *bench) state() (s state, err error) {
	if s.processes, err = hoststate.Processes(); err != nil {
		return s, err
	}
	s.text, err = hoststate.Snapshot(b.host.Dirs.Runtime)
	return s, err
}
