package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/vmrun/vmrun/qmp"
)

// A migration moves a machine's memory and the state of its devices into a file,
// or out of one (QEMU, docs/devel/migration.rst).
type migration struct {
	client *qmp.Client
	qemu   int // process id
}

// stoppedGrace is how long a QEMU that was stopped by a signal is waited for when
// it is told to undo something. It will do so when it goes on.
const stoppedGrace = 100 * time.Millisecond

// unlimited is a bandwidth, in bytes per second, that no disk reaches: QEMU holds
// back for a network otherwise.
const unlimited = 1 << 40

// save writes the state of a stopped machine, which is then as QEMU says
// "postmigrate": its images are flushed and nobody's, until cont.
func (m migration) save(ctx context.Context, f *os.File) error {
	limit := map[string]any{"max-bandwidth": unlimited}
	if err := m.client.Run(ctx, "migrate-set-parameters", limit, nil); err != nil {
		return err
	}
	err := m.run(ctx, f, "migrate")
	if _, stopped := errors.AsType[*StateError](context.Cause(ctx)); stopped {
		return err
	}
	return errors.Join(err, unlessStopped(context.WithoutCancel(ctx), m.qemu, m.settle))
}

// settle waits until QEMU would obey cont again: for a moment after it has told
// how a migration ended it refuses that, and no event tells of the moment's end.
// Each question lets QEMU's other threads have their turn.
func (m migration) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, qmp.DefaultTimeout)
	defer cancel()
	for {
		var now struct{ Status string }
		if err := m.client.Run(ctx, "query-status", nil, &now); err != nil || now.Status != "finish-migrate" {
			return err
		}
	}
}

// load reads a state into a machine that waits for one.
func (m migration) load(ctx context.Context, f *os.File) error {
	return m.run(ctx, f, "migrate-incoming")
}

func (m migration) run(ctx context.Context, f *os.File, command string) error {
	const name = "state"
	tell := map[string]any{"capabilities": []any{map[string]any{"capability": "events", "state": true}}}
	if err := m.client.Run(ctx, "migrate-set-capabilities", tell, nil); err != nil {
		return err
	}
	events, cancel := m.client.Subscribe()
	defer cancel()
	if err := m.client.RunWithFile(ctx, "getfd", map[string]string{"fdname": name}, nil, f); err != nil {
		return err
	}
	if err := m.client.Run(ctx, command, map[string]string{"uri": "fd:" + name}, nil); err != nil {
		return err
	}
	return m.wait(ctx, events)
}

// wait waits for the end. Where ctx ends first, the migration is called off, and
// the machine can go on.
func (m migration) wait(ctx context.Context, events <-chan qmp.Event) error {
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return errors.New("QEMU has ended")
			}
			var data struct{ Status string }
			if e.Name != "MIGRATION" || json.Unmarshal(e.Data, &data) != nil {
				continue
			}
			switch data.Status {
			case "completed":
				return nil
			case "failed", "cancelled":
				return m.failure(ctx, data.Status)
			}
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), m.cancel(ctx))
		}
	}
}

func (m migration) cancel(ctx context.Context) error {
	return afterwards(context.WithoutCancel(ctx), m.client, m.qemu, "migrate_cancel", nil)
}

// afterwards runs a command that takes something back. A QEMU that was stopped by a
// signal finds the command when it goes on.
func afterwards(ctx context.Context, client *qmp.Client, qemu int, command string, args any) error {
	if StoppedProcess("QEMU", qemu) == "" {
		return client.Run(ctx, command, args, nil)
	}
	ctx, cancel := context.WithTimeout(ctx, stoppedGrace)
	defer cancel()
	err := client.Run(ctx, command, args, nil)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

func (m migration) failure(ctx context.Context, status string) error {
	var info struct {
		Reason string `json:"error-desc"`
	}
	if err := m.client.Run(ctx, "query-migrate", nil, &info); err != nil || info.Reason == "" {
		return fmt.Errorf("QEMU says only: %s", status)
	}
	return errors.New(info.Reason)
}

// announce has the network cards say where their addresses are now, so that
// neighbours and switches don't look for a guest that goes on where it was not
// started (QEMU, announce-self).
func (i *Instance) announce(ctx context.Context) error {
	if len(i.plan.NICs) == 0 && len(i.Attachments()) == 0 {
		return nil
	}
	pace := map[string]int{"initial": 50, "max": 550, "rounds": 5, "step": 50} // milliseconds; QEMU's own
	return i.QMP().Run(ctx, "announce-self", pace, nil)
}
