package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmrun/vmrun/netsetup"
	"github.com/vmrun/vmrun/profiles"
)

func newNetCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "net",
		Short: "Look at networks in use, keep them up, take them down",
		Args:  cobra.ArbitraryArgs,
		RunE:  unknownCommand,
	}
	cmd.SuggestionsMinimumDistance = 2
	cmd.AddCommand(newNetListCommand(), newNetInspectCommand(), newNetLeasesCommand(), newNetUpCommand(), newNetDownCommand())
	return cmd
}

func oneNetwork(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("want one NAME, got %d", len(args))
	}
	return nil
}

// inspectNetwork looks at a network by its name, as somebody in this folder
// means it.
func inspectNetwork(ctx context.Context, name string) (netsetup.Report, error) {
	host, err := locateHost()
	if err != nil {
		return netsetup.Report{}, err
	}
	dir, err := os.Getwd()
	if err != nil {
		return netsetup.Report{}, err
	}
	r, err := netsetup.Inspect(ctx, networkHost(host), name, dir)
	return r, guessNetwork(err)
}

// guessNetwork adds to the error about an unknown name the one that was meant.
func guessNetwork(err error) error {
	if absent, ok := errors.AsType[*netsetup.NotFoundError](err); ok && !absent.Was {
		if near := profiles.Nearest(absent.Name, absent.Known); near != "" {
			return fmt.Errorf("%w; did you mean %s?", err, near)
		}
	}
	return err
}

// completeNetworks lets the shell complete the names of networks in use.
func completeNetworks(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	host, err := locateHost()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	all, _ := netsetup.List(cmd.Context(), networkHost(host)) // what does not answer can't be completed
	names := shownNames(all)
	return names, cobra.ShellCompDirectiveNoFileComp
}

// shownNames are what the networks are called at the command line: their names,
// or their IDs where several have one name.
func shownNames(all []netsetup.Summary) []string {
	count := map[string]int{}
	for _, n := range all {
		count[n.Name]++
	}
	var names []string
	for _, n := range all {
		if count[n.Name] > 1 {
			names = append(names, n.ID)
		} else {
			names = append(names, n.Name)
		}
	}
	return names
}

// ago tells people when something was.
func ago(then, now time.Time) string {
	d := now.Sub(then)
	switch {
	case then.IsZero():
		return "-"
	case d < time.Minute:
		return fmt.Sprintf("%ds ago", max(0, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%dm ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh ago", int(d.Hours()))
	}
	return fmt.Sprintf("%dd ago", int(d.Hours()/24))
}

// userName is a user for people.
func userName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}

// quantity is a number of bytes for people.
func quantity(bytes uint64) string {
	const units = "KMGTPE"
	if bytes < 1024 {
		return fmt.Sprintf("%d B", bytes)
	}
	value, unit := float64(bytes)/1024, 0
	for value >= 1024 && unit < len(units)-1 {
		value, unit = value/1024, unit+1
	}
	return fmt.Sprintf("%.1f %ciB", value, units[unit])
}

// orDash is a text that may be empty.
func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
