package vm

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"
)

// Usage is what a machine's QEMU takes of the host.
type Usage struct {
	CPU    time.Duration // of all its threads, since it began
	Memory int64         // resident, in bytes
}

// Usage reads what the machine's QEMU takes; an error if it is gone.
func (m Machine) Usage() (Usage, error) {
	p, err := readProcess(m.QEMU)
	if err != nil {
		return Usage{}, err
	}
	return Usage{CPU: p.cpu, Memory: p.resident}, nil
}

// processStat is what /proc/PID/stat says (proc(5)).
type processStat struct {
	state    byte
	cpu      time.Duration
	resident int64
}

// clockTick is the unit of times in /proc: USER_HZ, which is 100 on all
// architectures of Linux but alpha and ia64.
const clockTick = time.Second / 100

func readProcess(pid int) (processStat, error) {
	if pid <= 0 {
		return processStat{}, os.ErrProcessDone
	}
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return processStat{}, err
	}
	return parseStat(text)
}

// parseStat parses a line of /proc/PID/stat. The second field is a name in
// brackets, which may have blanks and brackets in it.
func parseStat(text []byte) (processStat, error) {
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	const state, utime, stime, rss = 0, 11, 12, 21 // counted from the third field
	if len(fields) <= rss {
		return processStat{}, fmt.Errorf("parse %.80q: too few fields", text)
	}
	number := func(i int) int64 {
		n, _ := strconv.ParseInt(string(fields[i]), 10, 64)
		return n
	}
	return processStat{
		state:    fields[state][0],
		cpu:      time.Duration(number(utime)+number(stime)) * clockTick,
		resident: number(rss) * int64(os.Getpagesize()),
	}, nil
}

// stopped tells whether a signal has stopped the process, or a debugger.
func (p processStat) stopped() bool { return p.state == 'T' || p.state == 't' }
