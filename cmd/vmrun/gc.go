package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmrun/vmrun/images"
	"github.com/vmrun/vmrun/netsetup"
	"github.com/vmrun/vmrun/vm"
)

// unusedAfter is when a micro guest in the cache is taken for forgotten.
const unusedAfter = 30 * 24 * time.Hour

// collection is what gc did.
type collection struct {
	Removed []string `json:"removed"` // a line for each thing
}

func newGCCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Remove what killed runs left behind",
		Long: "Undo what networks left on the host whose processes were killed, forget VMs whose\n" +
			"run was killed, and remove micro guests that no run has used for a month. What is in\n" +
			"use or isn't vmrun's stays.",
		Args: usageArgs(noArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			host, err := locateHost()
			if err != nil {
				return err
			}
			host.Log = styleOf(cmd.Context()).messages(os.Stderr, false)
			c, err := collect(cmd.Context(), host, time.Now())
			return errors.Join(c.print(cmd.OutOrStdout(), asJSON, err == nil), err)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// collect removes what can go, past failures.
func collect(ctx context.Context, host vm.Host, now time.Time) (collection, error) {
	c := collection{Removed: []string{}}
	undone, netErr := netsetup.Sweep(ctx, networkHost(host))
	c.Removed = append(c.Removed, undone...)
	forgotten, vmErr := vm.Sweep(host)
	c.Removed = append(c.Removed, forgotten...)
	unused, cacheErr := images.SweepMicro(host.Dirs.Cache, now.Add(-unusedAfter))
	for _, path := range unused {
		c.Removed = append(c.Removed, "removed "+path)
	}
	return c, errors.Join(netErr, vmErr, cacheErr)
}

// print tells what was removed; all says that nothing is left.
func (c collection) print(w io.Writer, asJSON, all bool) error {
	if asJSON {
		return printJSON(w, c)
	}
	if len(c.Removed) == 0 && all {
		_, err := fmt.Fprintln(w, "nothing was left behind")
		return err
	}
	for _, line := range c.Removed {
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}
