package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/control"
)

// sampleVMs looks at all VMs that live, at once. What could not be seen of one is
// zero, and told.
func sampleVMs(ctx context.Context, host vm.Host) ([]topSample, error) {
	machines, err := vm.List(ctx, host)
	if err != nil {
		return nil, err
	}
	var living []vm.Machine
	for _, m := range machines {
		if m.Alive() && m.Err == nil {
			living = append(living, m)
		}
	}
	samples := make([]topSample, len(living))
	err = each(living, func(i int, m vm.Machine) (err error) {
		samples[i], err = sampleVM(ctx, m)
		return err
	})
	return samples, err
}

// samplePatience is how long a supervisor may take to tell what its disks do.
const samplePatience = time.Second

func sampleVM(ctx context.Context, m vm.Machine) (topSample, error) {
	s := topSample{Name: m.Name, State: string(m.Phase), CPUs: 1}
	if m.Plan != nil {
		s.CPUs = max(m.Plan.CPUs, m.Plan.MaxCPUs)
	}
	usage, err := m.Usage()
	if err != nil {
		return s, nil // it is starting, or just ended
	}
	s.CPU, s.Memory = usage.CPU, usage.Memory
	for _, n := range m.Cards() {
		if n.Link != "" {
			s.Network = s.Network.plus(tapTraffic(n.Link))
		}
	}
	if m.Plan == nil || len(m.Plan.Disks) == 0 || m.Phase == vm.Frozen {
		return s, nil
	}
	s.Disk, err = diskTraffic(ctx, m)
	if err != nil {
		return s, fmt.Errorf("%s: %w", m.Name, err)
	}
	return s, nil
}

func (t traffic) plus(o traffic) traffic { return traffic{t.In + o.In, t.Out + o.Out} }

// tapTraffic counts what passed a TAP: what it sends, the guest receives. A TAP
// that is gone, or of another network namespace, counts nothing.
func tapTraffic(link string) traffic {
	count := func(name string) int64 {
		text, err := os.ReadFile(filepath.Join("/sys/class/net", filepath.Base(link), "statistics", name))
		if err != nil {
			return 0
		}
		n, _ := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		return n
	}
	return traffic{In: count("tx_bytes"), Out: count("rx_bytes")}
}

// diskTraffic adds up what the guest's disks have read and written.
func diskTraffic(ctx context.Context, m vm.Machine) (traffic, error) {
	reply, err := control.QMP(ctx, m, "query-blockstats", nil, samplePatience)
	if err != nil {
		return traffic{}, err
	}
	var disks []struct {
		Stats struct {
			Read    int64 `json:"rd_bytes"`
			Written int64 `json:"wr_bytes"`
		}
	}
	if err := json.Unmarshal(reply, &disks); err != nil {
		return traffic{}, errors.Join(errors.New("read disk statistics"), err)
	}
	var t traffic
	for _, d := range disks {
		t = t.plus(traffic{In: d.Stats.Read, Out: d.Stats.Written})
	}
	return t, nil
}
