package control

import (
	"context"
	"encoding/json"
	"time"

	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/wire"
)

// qmpArgs are a command for QEMU. Its id is the supervisor's affair: commands of
// several clients, and the supervisor's own, are under way at a time.
type qmpArgs struct {
	Command   string          `json:"command"`
	Arguments json.RawMessage `json:"arguments,omitempty"`
}

func runQMP(ctx context.Context, m *vm.Instance, a qmpArgs) (any, error) {
	if a.Command == "" {
		return nil, wire.Refuse(wire.KindUsage, "no QMP command given")
	}
	if a.Command == "qmp_capabilities" {
		return nil, wire.Refuse(wire.KindUsage, "the capabilities are negotiated already")
	}
	var args any
	if len(a.Arguments) > 0 {
		args = a.Arguments
	}
	var result json.RawMessage
	err := m.QMP().Run(ctx, a.Command, args, &result)
	return result, err
}

// QMP runs a command in a machine's QEMU and returns its reply. The arguments
// are a JSON object, or nil. QEMU's refusal is a *wire.Refusal with a Class.
func QMP(ctx context.Context, m vm.Machine, command string, arguments json.RawMessage, timeout time.Duration) (json.RawMessage, error) {
	var result json.RawMessage
	err := ask(ctx, m, wire.Request{Verb: "qmp", Args: qmpArgs{command, arguments}, Timeout: timeout}, &result)
	return result, err
}
