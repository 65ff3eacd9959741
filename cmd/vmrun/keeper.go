package main

import (
	"log/slog"
	"os"

	"github.com/spf13/cobra"
	"github.com/vmrun/vmrun/netsetup"
)

// newKeeperCommand is the process behind a network. vmrun starts it itself, with the
// listening socket as descriptor 3; stderr is the network's keeper.log.
func newKeeperCommand() *cobra.Command {
	var h netsetup.Host
	var network string
	c := &cobra.Command{
		Use:    "keeper",
		Short:  "Own a network (vmrun starts this itself)",
		Hidden: true,
		Args:   usageArgs(noArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			h.Log = slog.New(slog.NewJSONHandler(os.Stderr, nil))
			return netsetup.Keep(c.Context(), h, network)
		},
	}
	c.Flags().StringVar(&h.Runtime, "runtime", "", "folder of running state")
	c.Flags().StringVar(&h.State, "state", "", "folder of lasting state")
	c.Flags().StringVar(&network, "network", "", "the network's folder")
	return c
}
