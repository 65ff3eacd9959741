package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmrun/vmrun/netsetup"
)

func newNetInspectCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "inspect NAME",
		Short: "Tell who is on a network, with addresses, traffic and since when",
		Long: "Tell all about a network in use: what it is made of, who holds it up, who is on it,\n" +
			"with addresses, traffic and since when. Of several of one name it is the one of a\n" +
			"file in the current folder; else name it by its ID, as ls shows it.",
		Args: usageArgs(oneNetwork),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := inspectNetwork(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), r)
			}
			return printReport(cmd.OutOrStdout(), r, time.Now())
		},
		ValidArgsFunction: completeNetworks,
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// printReport writes a report for people.
func printReport(w io.Writer, r netsetup.Report, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, line := range reportLines(r, now) {
		if line[1] != "" {
			fmt.Fprintf(t, "%s\t%s\n", line[0], line[1])
		}
	}
	if err := t.Flush(); err != nil || len(r.Members) == 0 {
		return err
	}
	fmt.Fprintln(w)
	fmt.Fprintln(t, "VM\tNIC\tADDRESS\tMAC\tLINK\tUSER\tPROCESS\tSINCE\tSENT\tRECEIVED")
	for _, m := range r.Members {
		address, process := "", ""
		if m.IP.IsValid() {
			address = m.IP.String()
		}
		if m.PID != 0 {
			process = fmt.Sprint(m.PID)
		}
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", m.VM, m.NIC, orDash(address), m.MAC, m.Link,
			userName(m.UID), orDash(process), ago(m.Since, now), trafficText(m.Sent), trafficText(m.Received))
	}
	return t.Flush()
}

// reportLines is what there is to tell of the network itself; what has no value
// is left out.
func reportLines(r netsetup.Report, now time.Time) [][2]string {
	lines := [][2]string{
		{"network", r.Name}, {"id", r.ID}, {"mode", string(r.Mode)}, {"state", string(r.State)},
		{"since", sinceText(r.Since, now)}, {"defined in", r.Dir}, {"bridge", r.Bridge}, {"uplink", r.Uplink},
		{"vlan", number(r.VLAN)}, {"tenant", r.Tenant},
	}
	if r.Subnet.IsValid() {
		lines = append(lines, [2]string{"subnet", r.Subnet.String()})
	}
	if r.Address.IsValid() {
		lines = append(lines, [2]string{"host", r.Address.Addr().String()})
	}
	if r.Gateway.IsValid() {
		lines = append(lines, [2]string{"gateway", r.Gateway.String()})
	}
	if r.DHCP && r.PoolFirst.IsValid() {
		lines = append(lines, [2]string{"pool", fmt.Sprintf("%s-%s", r.PoolFirst, r.PoolLast)})
	}
	lines = append(lines, [2]string{"serves", servesText(r)}, [2]string{"mtu", number(r.MTU)},
		[2]string{"host access", string(r.HostAccess)}, [2]string{"firewall", r.Firewall},
		[2]string{"refused", refusedText(r.Refused)}, [2]string{"keeper", number(r.KeeperID)})
	if r.Group != nil {
		lines = append(lines, [2]string{"open to", "group " + r.Group.Name})
	}
	for _, h := range r.Holders {
		lines = append(lines, [2]string{"held by", fmt.Sprintf("process %d of %s, %s", h.PID, userName(h.UID), ago(h.Since, now))})
	}
	return lines
}

func sinceText(since, now time.Time) string {
	if since.IsZero() {
		return ""
	}
	return fmt.Sprintf("%s (%s)", ago(since, now), since.UTC().Format(time.RFC3339))
}

// refusedText is what the network's rules kept from passing.
func refusedText(r *netsetup.Refused) string {
	if r == nil {
		return ""
	}
	return fmt.Sprintf("%s from guests, %d to them", plural(int(r.FromGuests), "packet"), r.ToGuests)
}

func servesText(r netsetup.Report) string {
	var all []string
	if r.DHCP {
		all = append(all, "DHCP")
	}
	if r.DNS {
		all = append(all, "DNS")
	}
	return strings.Join(all, ", ")
}

func number(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

func trafficText(t netsetup.Traffic) string {
	text := fmt.Sprintf("%s in %s", quantity(t.Bytes), plural(int(t.Packets), "packet"))
	if t.Dropped > 0 {
		text += fmt.Sprintf(", %d dropped", t.Dropped)
	}
	return text
}

func newNetLeasesCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "leases NAME",
		Short: "List the addresses of a network and who has them",
		Args:  usageArgs(oneNetwork),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := inspectNetwork(cmd.Context(), args[0])
			switch {
			case err != nil:
				return err
			case r.State == netsetup.KeeperGone:
				return fmt.Errorf("list leases of network %s: its keeper is gone", args[0])
			case asJSON:
				return printJSON(cmd.OutOrStdout(), r.Leases)
			}
			return printLeases(cmd.OutOrStdout(), r.Leases, time.Now())
		},
		ValidArgsFunction: completeNetworks,
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printLeases(w io.Writer, all []netsetup.Lease, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ADDRESS\tMAC\tNAME\tSTATE\tSINCE\tEXPIRES")
	for _, l := range all {
		expires := "-"
		if !l.Expiry.IsZero() {
			expires = fmt.Sprintf("in %s", max(0, l.Expiry.Sub(now)).Round(time.Second))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", l.IP, orDash(l.MAC), orDash(l.Hostname), l.State, ago(l.Since, now), expires)
	}
	return t.Flush()
}
