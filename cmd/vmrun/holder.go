package main

import (
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/vmrun/vmrun/netsetup"
)

// newHolderCommand is the process that net up leaves behind for each network.
// vmrun starts it itself; stderr is the network's keeper.log.
func newHolderCommand() *cobra.Command {
	var h netsetup.Host
	c := &cobra.Command{
		Use:    "holder",
		Short:  "Keep a network up (vmrun starts this itself)",
		Hidden: true,
		Args:   usageArgs(noArgs),
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if h.Executable, err = os.Executable(); err != nil {
				return err
			}
			h.Log = slog.New(slog.NewJSONHandler(os.Stderr, nil))
			h.Version = buildVersion().String()
			return netsetup.KeepHold(c.Context(), h)
		},
	}
	c.Flags().StringVar(&h.Runtime, "runtime", "", "folder of running state")
	c.Flags().StringVar(&h.State, "state", "", "folder of lasting state")
	firewallFlag(c, &h)
	return c
}
