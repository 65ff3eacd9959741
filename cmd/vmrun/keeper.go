package main

import (
	"fmt"
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
			var err error
			if h.Executable, err = os.Executable(); err != nil {
				return fmt.Errorf("find own executable: %w", err)
			}
			h.Log = slog.New(slog.NewJSONHandler(os.Stderr, nil))
			h.Version = buildVersion().String()
			return netsetup.Keep(c.Context(), h, network)
		},
	}
	daemonFlags(c, &h, &network)
	firewallFlag(c, &h)
	return c
}

// newDeadmanCommand is the process behind a keeper that has taken over an uplink
// of the host. The keeper starts it itself, with pipes as stdin and stdout; stderr
// is the network's keeper.log.
func newDeadmanCommand() *cobra.Command {
	var h netsetup.Host
	var network string
	c := &cobra.Command{
		Use:    "deadman",
		Short:  "Put the host back if a keeper dies (a keeper starts this itself)",
		Hidden: true,
		Args:   usageArgs(noArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			h.Log = slog.New(slog.NewJSONHandler(os.Stderr, nil))
			return netsetup.Deadman(c.Context(), h, network, os.Stdin, os.Stdout)
		},
	}
	daemonFlags(c, &h, &network)
	return c
}

// daemonFlags say which network a daemon is for.
func daemonFlags(c *cobra.Command, h *netsetup.Host, network *string) {
	c.Flags().StringVar(&h.Runtime, "runtime", "", "folder of running state")
	c.Flags().StringVar(&h.State, "state", "", "folder of lasting state")
	c.Flags().StringVar(network, "network", "", "the network's folder")
}

func firewallFlag(c *cobra.Command, h *netsetup.Host) {
	c.Flags().StringVar(&h.Firewall, "firewall", "", "what carries the rules of a network that leaves it open")
}
