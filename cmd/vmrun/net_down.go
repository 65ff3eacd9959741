package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/vmrun/vmrun/netsetup"
)

// lowered is what net down says of a network.
type lowered struct {
	Name string   `json:"name"`
	Down bool     `json:"down"`
	VMs  []string `json:"vms"` // that are on it, with the last of which it goes
}

func newNetDownCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "down NAME",
		Short: "Let a network go down",
		Long: "Take down a network that net up keeps up. While VMs are on it, it stays and goes with\n" +
			"the last of them; the exit code is then 1. A network that is down already is no error.",
		Args: usageArgs(oneNetwork),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := netDown(cmd, args[0])
			if asJSON && (err == nil || l.VMs != nil) {
				return errors.Join(printJSON(cmd.OutOrStdout(), l), err)
			}
			return err
		},
		ValidArgsFunction: completeNetworks,
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func netDown(cmd *cobra.Command, name string) (lowered, error) {
	l := lowered{Name: name, VMs: []string{}}
	host, err := locateHost()
	if err != nil {
		return l, err
	}
	dir, err := os.Getwd()
	if err != nil {
		return l, err
	}
	err = netsetup.Down(cmd.Context(), networkHost(host), name, dir)
	if busy, ok := errors.AsType[*netsetup.BusyError](err); ok {
		l.VMs = busy.VMs
		return l, err
	}
	if absent, ok := errors.AsType[*netsetup.NotFoundError](err); ok && absent.Was {
		fmt.Fprintf(cmd.ErrOrStderr(), "vmrun: network %s is down already\n", name)
		err = nil
	}
	l.Down = err == nil
	if err != nil {
		l.VMs = nil
	}
	return l, guessNetwork(err)
}
