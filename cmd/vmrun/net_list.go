package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmrun/vmrun/netsetup"
)

func newNetListCommand() *cobra.Command {
	var asJSON, quiet bool
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the networks in use",
		Long: "List the networks in use.\n\n" +
			"Root's are listed for root alone. Members of a group that root has opened one to\n" +
			"ask for it by name, in the folder of its file: vmrun net inspect NAME, and\n" +
			"vmrun net leases NAME. One that has shared = true has its name in any folder.",
		Args: usageArgs(noArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asJSON && quiet {
				return usageError{cmd.CommandPath(), errors.New("--json and --quiet exclude each other")}
			}
			host, err := locateHost()
			if err != nil {
				return err
			}
			all, err := netsetup.List(cmd.Context(), networkHost(host))
			print := printNetworks
			switch {
			case asJSON:
				return errors.Join(printJSON(cmd.OutOrStdout(), all), err)
			case quiet:
				print = printNetworkNames
			}
			if slices.ContainsFunc(all, func(n netsetup.Summary) bool { return n.State == netsetup.KeeperGone }) {
				defer fmt.Fprintln(cmd.ErrOrStderr(), "hint: what is left of a network whose keeper is gone is undone by the next command once no VM is on it")
			}
			return errors.Join(print(cmd.OutOrStdout(), all, time.Now()), err)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print only names")
	return cmd
}

func printNetworks(w io.Writer, all []netsetup.Summary, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tMODE\tSTATE\tBRIDGE\tSUBNET\tMEMBERS\tHOLDERS\tSINCE")
	names := shownNames(all)
	for i, n := range all {
		subnet := ""
		if n.Subnet.IsValid() {
			subnet = n.Subnet.String()
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\n", names[i], orDash(string(n.Mode)), n.State, orDash(n.Bridge),
			orDash(subnet), n.Members, n.Holders, ago(n.Since, now))
	}
	return t.Flush()
}

func printNetworkNames(w io.Writer, all []netsetup.Summary, _ time.Time) error {
	for _, name := range shownNames(all) {
		if _, err := fmt.Fprintln(w, name); err != nil {
			return err
		}
	}
	return nil
}
