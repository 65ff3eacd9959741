package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/vmrun/vmrun/qmp"
	"github.com/vmrun/vmrun/vm/qemu"
)

// resizePatience is how long a guest may take to give memory back.
const resizePatience = 30 * time.Second

// SetMemory has the guest's balloon leave it so much memory, in bytes, at most
// what the machine was launched with, and waits until that is so.
func (i *Instance) SetMemory(ctx context.Context, bytes int64) error {
	if err := i.setMemory(ctx, bytes); err != nil {
		return fmt.Errorf("resize %s to %d bytes of memory: %w", i.plan.Name, bytes, err)
	}
	return nil
}

// minBalloon is what a guest can't do without, in bytes.
const minBalloon = 16 << 20

func (i *Instance) setMemory(ctx context.Context, bytes int64) error {
	switch {
	case bytes > i.plan.Memory:
		return fmt.Errorf("it was launched with %d, and gets no more while it runs (machine.memory)", i.plan.Memory)
	case bytes < minBalloon:
		return fmt.Errorf("less than %d", int64(minBalloon))
	}
	ctx, cancel := context.WithTimeout(ctx, resizePatience)
	defer cancel()
	events, stop := i.QMP().Subscribe()
	defer stop()
	if err := i.QMP().Run(ctx, "balloon", map[string]int64{"value": bytes}, nil); err != nil {
		return err
	}
	return i.awaitBalloon(ctx, events, bytes)
}

// awaitBalloon waits until the guest has the memory that it is to have. Balloons
// move in pages.
func (i *Instance) awaitBalloon(ctx context.Context, events <-chan qmp.Event, bytes int64) error {
	var has struct{ Actual int64 }
	for {
		if err := i.QMP().Run(ctx, "query-balloon", nil, &has); err != nil {
			return err
		}
		if off := has.Actual - bytes; off > -(1<<20) && off < 1<<20 {
			return nil
		}
		if err := awaitEvent(ctx, events, "BALLOON_CHANGE"); err != nil {
			return fmt.Errorf("the guest has %d bytes still: it gives back no more, or lacks a driver for its balloon: %w", has.Actual, err)
		}
	}
}

func awaitEvent(ctx context.Context, events <-chan qmp.Event, name string) error {
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return qmp.ErrClosed
			}
			if e.Name == name {
				return nil
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// cpuSlot is a CPU that a machine has, or can get (QMP, query-hotpluggable-cpus).
type cpuSlot struct {
	Type  string
	Props map[string]any
	Path  string `json:"qom-path"` // "": not there now
}

// SetCPUs gives a running machine more CPUs, up to Plan.MaxCPUs, or takes some
// of those away. The guest has to bring new ones online, and to let go of old ones.
// None can be taken away under TCG: QEMU 7.2 then writes to memory that it has
// freed, and aborts some time afterwards.
func (i *Instance) SetCPUs(ctx context.Context, count int) error {
	if err := i.setCPUs(ctx, count); err != nil {
		return fmt.Errorf("resize %s to %d CPUs: %w", i.plan.Name, count, err)
	}
	return nil
}

func (i *Instance) setCPUs(ctx context.Context, count int) error {
	switch {
	case i.plan.Machine == qemu.MicroVM:
		return errors.New("a microvm keeps the CPUs that it has")
	case count > i.plan.MaxCPUs:
		return fmt.Errorf("it can have %d at most (machine.max_cpus)", i.plan.MaxCPUs)
	case count < i.plan.CPUs:
		return fmt.Errorf("it keeps the %d that it was launched with", i.plan.CPUs)
	}
	i.hot.mu.Lock()
	defer i.hot.mu.Unlock()
	return i.plugCPUs(ctx, count)
}

func (i *Instance) plugCPUs(ctx context.Context, count int) error {
	slots, there, err := i.cpus(ctx)
	switch {
	case err != nil:
		return err
	case there > count && i.Accel() == qemu.TCG:
		return fmt.Errorf("it has %d, and under TCG none can be taken away: QEMU would crash of it later", there)
	}
	for ; there < count; there++ {
		if err := i.addCPU(ctx, slots); err != nil {
			return err
		}
	}
	for ; there > count; there-- {
		if err := i.unplug(ctx, cpuID(there-1)); err != nil {
			return err
		}
	}
	return nil
}

// cpus are all places for CPUs, and in how many there is one.
func (i *Instance) cpus(ctx context.Context) (slots []cpuSlot, there int, err error) {
	if err := i.QMP().Run(ctx, "query-hotpluggable-cpus", nil, &slots); err != nil {
		return nil, 0, err
	}
	for _, s := range slots {
		if s.Path != "" {
			there++
		}
	}
	return slots, there, nil
}

func cpuID(n int) string { return fmt.Sprintf("cpu%d", n) }

// addCPU fills the free slot that comes first: QEMU lists them from the last.
func (i *Instance) addCPU(ctx context.Context, slots []cpuSlot) error {
	for n := len(slots) - 1; n >= 0; n-- {
		s := &slots[n]
		if s.Path != "" {
			continue
		}
		args := map[string]any{"driver": s.Type, "id": cpuID(len(slots) - 1 - n)}
		for key, value := range s.Props {
			args[key] = value
		}
		if err := i.QMP().Run(ctx, "device_add", args, nil); err != nil {
			return err
		}
		s.Path = "just added"
		return nil
	}
	return errors.New("no CPU is left to add")
}

// Resources are what a running machine has now.
type Resources struct {
	CPUs   int   `json:"cpus"`
	Memory int64 `json:"memory"` // bytes that the balloon leaves
}

// Resources asks QEMU.
func (i *Instance) Resources(ctx context.Context) (r Resources, err error) {
	var cpus []json.RawMessage
	var balloon struct{ Actual int64 }
	err = errors.Join(i.QMP().Run(ctx, "query-cpus-fast", nil, &cpus), i.QMP().Run(ctx, "query-balloon", nil, &balloon))
	return Resources{CPUs: len(cpus), Memory: balloon.Actual}, err
}
