package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
)

// memory is a process's proportional set size in MiB: pages that several
// processes share count in parts (proc_pid_smaps(5)).
func memory(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, fmt.Errorf("read memory: %w", err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		var kib float64
		if _, err := fmt.Sscanf(lines.Text(), "Pss: %f kB", &kib); err == nil {
			return kib / 1024, nil
		}
	}
	return 0, fmt.Errorf("read memory of process %d: no Pss", pid)
}
