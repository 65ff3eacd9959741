package main

import (
	"github.com/spf13/cobra"

	"github.com/vmrun/vmrun/images/guest"
)

const agentHelp = `Serve vmrun's agent in this machine, which is a guest of vmrun's: what exec and cp
ask for is done by this process, with its rights. The micro guest does so by itself.
In other guests it gives exec terminals and streams, which qemu-guest-agent lacks.`

func newAgentCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "agent",
		Short: "Serve exec and cp inside a guest",
		Long:  agentHelp,
		Args:  usageArgs(noArgs),
		RunE:  func(*cobra.Command, []string) error { return guest.ServeAgent() },
	}
}
