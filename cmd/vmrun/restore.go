package main

import (
	"context"
	"log/slog"
	"slices"

	"github.com/spf13/cobra"

	"github.com/vmrun/vmrun/netsetup"
)

// leaveHost are the commands before which nothing is restored: those that
// restore the host by themselves, those that promise to change nothing, and
// those that have to do with text alone, or with a guest's inside.
var leaveHost = []string{
	"run", "up", "gc",
	"plan", "doctor",
	"validate", "schema", "version", "help", "completion", "agent",
}

// restores tells whether a command first restores what killed runs have left of
// the host.
func restores(cmd *cobra.Command) bool {
	if cmd.Hidden || cmd.HasSubCommands() || !cmd.Runnable() {
		return false
	}
	for c := cmd; c.HasParent(); c = c.Parent() {
		if slices.Contains(leaveHost, c.Name()) {
			return false
		}
	}
	return true
}

// restoreAside restores the host before a command that is about something else,
// which it never fails and hardly delays.
func restoreAside(cmd *cobra.Command) {
	host, err := locateHost()
	if err != nil {
		return // the command says it
	}
	host.Log = slog.New(slog.DiscardHandler)
	restoreHost(cmd.Context(), networkHost(host), styleOf(cmd.Context()).messages(cmd.ErrOrStderr(), false), netsetup.SweepAside)
}

// restoreHost undoes what killed runs left of networks and tells it. What can't
// be undone now hinders nobody, and is tried and told again by the next command.
func restoreHost(ctx context.Context, h netsetup.Host, log *slog.Logger,
	sweep func(context.Context, netsetup.Host) ([]string, error),
) {
	lines, err := sweep(ctx, h)
	for _, line := range lines {
		log.Info("left behind by a killed run: " + line)
	}
	if err != nil && ctx.Err() == nil {
		log.Warn("undo what a killed run left", "cause", err)
	}
}
