package main

import (
	"context"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmrun/vmrun/vm"
)

// inspection is all that is known of a VM.
type inspection struct {
	vmInfo
	Dir        string     `json:"dir"`         // its folder
	ConsoleLog string     `json:"console_log"` // path
	QEMULog    string     `json:"qemu_log"`    // path
	Keep       bool       `json:"keep"`        // its state outlives it
	Plan       *vm.Plan   `json:"plan"`        // as plan --json has it
	Ending     *vm.Ending `json:"ending,omitempty"`
}

func newInspectCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "inspect VM…",
		Short: "Print all that is known of VMs, as JSON",
		Long: "Print all that is known of VMs as a JSON array: what ps --json has, the plan that plan\n" +
			"--json has, and where the logs are. docs/json.md has the names.",
		Args: usageArgs(someVMs),
		RunE: func(cmd *cobra.Command, args []string) error {
			return inspect(cmd.Context(), cmd.OutOrStdout(), args)
		},
		ValidArgsFunction: completeVMs(anyVM),
	}
}

func inspect(ctx context.Context, w io.Writer, names []string) error {
	machines, err := chosenVMs(ctx, names, false)
	if err != nil {
		return err
	}
	all := []inspection{}
	now := time.Now()
	for _, m := range machines {
		i := inspection{vmInfo: newVMInfo(m, now), Dir: m.Dir, Keep: m.Keep, Plan: m.Plan,
			ConsoleLog: filepath.Join(m.Dir, vm.ConsoleLog), QEMULog: filepath.Join(m.Dir, vm.QEMULog)}
		if m.End != nil {
			i.Ending = &m.End.Ending
		}
		all = append(all, i)
	}
	return printJSON(w, all)
}
