package main

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"text/template"
	"time"

	"golang.org/x/sys/unix"
)

// measure is a quantity that a contender has.
type measure int

const (
	networkUp measure = iota
	execToQMP
	totalLaunch
	overhead // of totalLaunch over bare QEMU's in the same round
	stopToGone
	supervisorPSS
	helperPSS

	firstInKeeper // of many VMs on one network
	oneMore
	hundredth
	growth // hundredth over oneMore
	portsGone
	lastGone
	rulesPerVM
	dhcpRate

	listFifty // of VMs that run
	consolePSS
	execWhole
	execOwn    // what the guest itself needs for it
	execBeyond // execWhole without execOwn
	coldBoot
	restored
	restoreGain // coldBoot over restored
	intoMicro
	outOfMicro
	intoDebian
	outOfDebian
	intoQGA
	outOfQGA

	startToKeeper // phases of totalLaunch
	keeperToQEMU
	startToQEMU
	stopToQEMU // phases of stopToGone
	qemuToGone
)

// column is a contender.
type column string

const (
	vmrun  column = "vmrun"
	script column = "script"
	daemon column = "libvirt"
	bare   column = "bare QEMU"
	scp    column = "scp"
)

// results are the values by contender, one for each round.
type results map[column]map[measure][]float64

func (r results) add(round map[column]sample) {
	for c, s := range round {
		if launch, ok := s[totalLaunch]; ok && c != bare {
			s[overhead] = launch - round[bare][totalLaunch]
		}
		if r[c] == nil {
			r[c] = map[measure][]float64{}
		}
		for m, v := range s {
			r[c][m] = append(r[c][m], v)
		}
	}
}

// row is a line of a table.
type row struct {
	measure measure
	title   string
	unit    string
	limit   float64 // of vmrun's median; 0: none
	race    column  // whose median vmrun's may be no more than, too; "": nobody's
	more    bool    // more is better: the limit is the least
	none    bool    // vmrun's median has to be 0
}

var outcome = []row{
	{measure: execToQMP, title: "exec → QMP answers", unit: "ms"},
	{measure: totalLaunch, title: "total launch", unit: "ms"},
	{measure: overhead, title: "overhead over bare QEMU", unit: "ms", limit: 60},
	{measure: stopToGone, title: "stop → everything gone", unit: "ms", limit: 80, race: script},
	{measure: supervisorPSS, title: "memory of the supervisor", unit: "MiB", limit: 15},
	{measure: helperPSS, title: "memory of the keeper", unit: "MiB", limit: 15},
}

var network = []row{
	{measure: networkUp, title: "network up, first VM", unit: "ms"},
	{measure: firstInKeeper, title: "first VM, in the keeper", unit: "ms", limit: 10},
	{measure: oneMore, title: "one more VM", unit: "ms", limit: 3},
	{measure: hundredth, title: "the hundredth VM", unit: "ms"},
	{measure: growth, title: "the hundredth over VMs 2–6", unit: "×", limit: 1.5},
	{measure: portsGone, title: "99 VMs leave at once, each", unit: "ms", limit: 5},
	{measure: lastGone, title: "last VM leaves → all gone", unit: "ms", limit: 80},
	{measure: rulesPerVM, title: "rules per VM", none: true},
	{measure: dhcpRate, title: "DHCP exchanges per second", race: script, more: true},
}

var running = []row{
	{measure: listFifty, title: "`ps` with 50 VMs", unit: "ms", limit: 50},
	{measure: consolePSS, title: "memory of a supervisor with a console attached", unit: "MiB", limit: 12},
	{measure: execWhole, title: "`exec` of `true` in the micro guest", unit: "ms"},
	{measure: execOwn, title: "the guest's own time for that", unit: "ms"},
	{measure: execBeyond, title: "`exec` beyond that", unit: "ms", limit: 15},
	{measure: coldBoot, title: "`run` until the micro guest answers", unit: "ms"},
	{measure: restored, title: "`snapshot restore` until it answers", unit: "ms"},
	{measure: restoreGain, title: "restore is faster than boot by", unit: "×", limit: 10, more: true},
	{measure: intoMicro, title: "`cp` of 100 MiB into the micro guest", unit: "ms"},
	{measure: outOfMicro, title: "out of it", unit: "ms"},
	{measure: intoDebian, title: "`cp` of 100 MiB into Debian, `vmrun agent`", unit: "ms", race: scp},
	{measure: outOfDebian, title: "out of it", unit: "ms", race: scp},
	{measure: intoQGA, title: "`cp` of 100 MiB into Debian, qemu-guest-agent", unit: "ms"},
	{measure: outOfQGA, title: "out of it", unit: "ms"},
}

var phases = []row{
	{measure: startToKeeper, title: "start → the keeper's exec", unit: "ms"},
	{measure: keeperToQEMU, title: "the keeper's exec → QEMU's exec", unit: "ms"},
	{measure: startToQEMU, title: "start → QEMU's exec", unit: "ms"},
	{measure: execToQMP, title: "QEMU's exec → QMP answers", unit: "ms"},
	{measure: stopToQEMU, title: "stop → QEMU gone", unit: "ms"},
	{measure: qemuToGone, title: "QEMU gone → everything gone", unit: "ms"},
}

// table is the rows in Markdown, with the columns of those contenders.
func (r results) table(rows []row, columns ...column) string {
	head, rule := []string{""}, []string{"---"}
	for _, c := range columns {
		head, rule = append(head, string(c)), append(rule, "---:")
	}
	lines := [][]string{append(head, "target"), append(rule, "---")}
	for _, row := range rows {
		cells := []string{row.title}
		for _, c := range columns {
			cells = append(cells, r.cell(c, row))
		}
		lines = append(lines, append(cells, r.verdict(row)))
	}
	var b strings.Builder
	for _, cells := range lines {
		b.WriteString("| " + strings.Join(cells, " | ") + " |\n")
	}
	return b.String()
}

func (r results) cell(c column, row row) string {
	values := r[c][row.measure]
	if len(values) == 0 {
		return "–"
	}
	s := newSpread(values)
	return strings.TrimSpace(fmt.Sprintf("**%.1f** (%.1f–%.1f) %s", s.median, s.low, s.high, row.unit))
}

// verdict holds vmrun's median against each target that the row has.
func (r results) verdict(row row) string {
	var targets []string
	if row.limit != 0 || row.none {
		targets = append(targets, r.against(row, fmt.Sprintf("%g %s", row.limit, row.unit), []float64{row.limit}))
	}
	if row.race != "" {
		targets = append(targets, r.against(row, string(row.race), r[row.race][row.measure]))
	}
	if targets == nil {
		return "–"
	}
	return strings.Join(targets, "; ")
}

// against is the verdict of one target, whose median is the limit.
func (r results) against(row row, target string, limits []float64) string {
	sign := "≤ "
	switch {
	case row.none:
		sign, target = "", "0"
	case row.more:
		sign = "≥ "
	}
	if len(r[vmrun][row.measure]) == 0 || len(limits) == 0 {
		return sign + target + ": not measured"
	}
	got, limit := newSpread(r[vmrun][row.measure]).median, newSpread(limits).median
	if row.more {
		got, limit = -got, -limit
	}
	if got > limit {
		return sign + target + ": **missed**"
	}
	return sign + target + ": met"
}

// machine is where the benchmark ran.
type machine struct {
	Date   string
	Cores  int
	CPU    string
	Kernel string
	System string
	QEMU   string
	Load   float64 // of the minute before
}

// Busy tells whether something else had work for all processors.
func (m machine) Busy() bool { return m.Load > float64(m.Cores)/2 }

func readMachine() (machine, error) {
	m := machine{Date: time.Now().UTC().Format("2006-01-02 15:04 MST"), Cores: runtime.NumCPU(),
		CPU: field("/proc/cpuinfo", "model name\t: "), System: strings.Trim(field("/etc/os-release", "PRETTY_NAME="), `"`)}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return m, fmt.Errorf("read kernel version: %w", err)
	}
	m.Kernel = unix.ByteSliceToString(name.Release[:])
	version, err := exec.Command("qemu-system-x86_64", "--version").Output()
	if err != nil {
		return m, fmt.Errorf("read QEMU's version: %w", err)
	}
	fmt.Sscanf(string(version), "QEMU emulator version %s", &m.QEMU)
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return m, err
	}
	_, err = fmt.Sscan(string(load), &m.Load)
	return m, err
}

// field is the rest of the first line in a file that begins so, or "".
func field(file, prefix string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, prefix); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

//go:embed report.md
var reportText string

// report is the page docs/benchmarks.md.
func report(m machine, r results, rounds int) (string, error) {
	page, err := template.New("report.md").Parse(reportText)
	if err != nil {
		return "", err
	}
	var text strings.Builder
	err = page.Execute(&text, struct {
		machine
		Rounds, Crowd, Boots, Copies int
		Outcome, Network             string
		Running, Phases              string
	}{m, rounds, len(r[vmrun][portsGone]), len(r[vmrun][coldBoot]), len(r[scp][intoDebian]),
		r.table(outcome, vmrun, script, bare), r.table(network, vmrun, script, daemon),
		r.table(running, vmrun, scp), r.table(phases, vmrun, script, bare)})
	return text.String(), err
}
