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
	bare   column = "bare QEMU"
)

var columns = []column{vmrun, script, bare}

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
	race    bool    // vmrun's median may be no more than the script's
}

var outcome = []row{
	{measure: networkUp, title: "network up", unit: "ms"},
	{measure: execToQMP, title: "exec → QMP answers", unit: "ms"},
	{measure: totalLaunch, title: "total launch", unit: "ms"},
	{measure: overhead, title: "overhead over bare QEMU", unit: "ms", limit: 60},
	{measure: stopToGone, title: "stop → everything gone", unit: "ms", race: true},
	{measure: supervisorPSS, title: "memory of the supervisor", unit: "MiB", limit: 15},
	{measure: helperPSS, title: "memory of the keeper", unit: "MiB", limit: 15},
}

var phases = []row{
	{measure: startToKeeper, title: "start → the keeper's exec", unit: "ms"},
	{measure: keeperToQEMU, title: "the keeper's exec → QEMU's exec", unit: "ms"},
	{measure: startToQEMU, title: "start → QEMU's exec", unit: "ms"},
	{measure: execToQMP, title: "QEMU's exec → QMP answers", unit: "ms"},
	{measure: stopToQEMU, title: "stop → QEMU gone", unit: "ms"},
	{measure: qemuToGone, title: "QEMU gone → everything gone", unit: "ms"},
}

// table is the rows in Markdown.
func (r results) table(rows []row) string {
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
	return fmt.Sprintf("**%.1f** (%.1f–%.1f) %s", s.median, s.low, s.high, row.unit)
}

func (r results) verdict(row row) string {
	limit, text := row.limit, fmt.Sprintf("≤ %g %s", row.limit, row.unit)
	switch {
	case row.race:
		limit, text = newSpread(r[script][row.measure]).median, "≤ script"
	case limit == 0:
		return "–"
	}
	if newSpread(r[vmrun][row.measure]).median > limit {
		return text + ": **missed**"
	}
	return text + ": met"
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
		Rounds          int
		Outcome, Phases string
	}{m, rounds, r.table(outcome), r.table(phases)})
	return text.String(), err
}
