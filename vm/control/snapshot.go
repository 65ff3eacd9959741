package control

import (
	"context"

	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/wire"
)

// saveArgs name a snapshot.
type saveArgs struct {
	Name string `json:"name"`
}

// Save keeps a running machine as a snapshot. It takes as long as the disk does;
// where ctx ends first, nothing is kept and the guest goes on.
func Save(ctx context.Context, m vm.Machine, name string) (*vm.Snapshot, error) {
	var s vm.Snapshot
	if err := ask(ctx, m, wire.Request{Verb: "save", Args: saveArgs{name}}, &s); err != nil {
		return nil, err
	}
	return &s, nil
}
