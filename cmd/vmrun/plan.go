package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmrun/vmrun/netsetup"
	"github.com/vmrun/vmrun/profiles"
	"github.com/vmrun/vmrun/vm"
)

// launchPlan is all that run would do.
type launchPlan struct {
	*vm.Plan
	Networks []netsetup.Plan `json:"networks"`                   // in the order of the NICs
	Unknown  []string        `json:"networks_unknown,omitempty"` // why others can only be planned by root
	Command  []string        `json:"command"`                    // QEMU's
}

func newPlanCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "plan FILE",
		Short: "Say what run would do, and how it is undone",
		Long: "Say what run would do on this host as it is now: the steps with their undo, and\n" +
			"QEMU's command line. What only the launch can know stands in {braces}. Nothing is\n" +
			"changed. Without root the steps of networks are left out.",
		Args: usageArgs(oneFile),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := newLaunchPlan(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), p)
			}
			return p.print(cmd.OutOrStdout())
		},
		ValidArgsFunction: completeProfiles,
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newLaunchPlan(ctx context.Context, file string) (*launchPlan, error) {
	profile, err := profiles.Load(file)
	if err != nil {
		return nil, err
	}
	host, err := detectHost()
	if err != nil {
		return nil, err
	}
	plan, err := vm.NewPlan(profile, host)
	if err != nil {
		return nil, err
	}
	p := &launchPlan{Plan: plan, Networks: []netsetup.Plan{}, Command: plan.Command(host)}
	return p, p.planNetworks(ctx, host)
}

// planNetworks plans each network that NICs join, with all their ports on it.
// Most of what it takes to know of the host only root is told.
func (p *launchPlan) planNetworks(ctx context.Context, host vm.Host) error {
	var specs []netsetup.Spec
	ports := map[netsetup.Spec][]netsetup.PortSpec{}
	for _, nic := range p.NICs {
		if nic.Spec == nil {
			continue // QEMU's own affair
		}
		if len(ports[*nic.Spec]) == 0 {
			specs = append(specs, *nic.Spec)
		}
		ports[*nic.Spec] = append(ports[*nic.Spec], *nic.Port)
	}
	if len(specs) == 0 {
		return nil
	}
	facts, instance, err := netsetup.ReadFacts(networkHost(host), specs...)
	if err != nil {
		return p.unknown(err, host)
	}
	for _, spec := range specs {
		n, err := netsetup.NewJoinPlan(ctx, networkHost(host), spec, ports[spec], facts)
		if err == nil && !n.Up {
			n, err = netsetup.NewPlan(spec, ports[spec], instance, facts)
		}
		if err == nil {
			p.Networks = append(p.Networks, n)
		} else if err := p.unknown(err, host); err != nil {
			return err
		}
	}
	return nil
}

// unknown notes what could not be planned for want of privilege, and returns
// errors that have another cause.
func (p *launchPlan) unknown(err error, host vm.Host) error {
	if _, conflict := errors.AsType[*netsetup.ConflictError](err); conflict || host.Privileged {
		return err
	}
	p.Unknown = append(p.Unknown, err.Error())
	return nil
}

// planned tells whether the steps of a network are known.
func (p *launchPlan) planned(network string) bool {
	return slices.ContainsFunc(p.Networks, func(n netsetup.Plan) bool { return n.Network == network })
}

// print writes the plan for people.
func (p *launchPlan) print(w io.Writer) error {
	var b strings.Builder
	for _, text := range slices.Concat(p.Warnings, p.NeedsRoot) {
		fmt.Fprintf(&b, "warning: %s\n", text)
	}
	fmt.Fprintf(&b, "%s: %s, as user %s\n", p.Name, p.machine(), p.User.Name)
	printFiles(&b, p.Plan)
	for _, n := range p.Networks {
		printNetwork(&b, n)
	}
	for i, nic := range p.NICs {
		switch {
		case nic.Spec == nil:
			fmt.Fprintf(&b, "\nnic %d: %s, QEMU's user-mode network, nothing to set up\n", i, nic.MAC)
		case !p.planned(nic.Network):
			fmt.Fprintf(&b, "\nnic %d: %s on network %s, whose steps only root can plan\n", i, nic.MAC, nic.Network)
		}
		for _, f := range nic.Forwards {
			fmt.Fprintf(&b, "  forward %s:%d/%s to port %d of the guest\n", f.HostAddr, f.HostPort, f.Proto, f.GuestPort)
		}
	}
	fmt.Fprintf(&b, "\n%s", commandText(p.Command))
	_, err := io.WriteString(w, b.String())
	return err
}

func (p *launchPlan) machine() string {
	accel := p.Accel
	if p.Fallback {
		accel += ", or tcg where it does not work"
	}
	return fmt.Sprintf("%s, %d MiB, %s, %s", plural(p.CPUs, "CPU"), p.Memory>>20, p.Plan.Machine, accel)
}

// printFiles tells what becomes of the host's files. The rest of what the guest
// starts from stands in QEMU's command line.
func printFiles(b *strings.Builder, plan *vm.Plan) {
	if plan.Micro != nil {
		fmt.Fprintf(b, "\ninitrd: a micro guest for %s, made unless the cache has it, where it stays\n", plan.Micro.Kernel)
	}
	for i, d := range plan.Disks {
		fmt.Fprintf(b, "\ndisk %d: %s", i, d.Path)
		if d.Size > 0 {
			fmt.Fprintf(b, ", at least %v", profiles.Size(d.Size))
		}
		if d.Keep {
			b.WriteString("; the guest writes to it\n")
		} else {
			b.WriteString("; read only\n  make an overlay without a name for what the guest writes\n      undo: close it\n")
		}
	}
}

func printNetwork(b *strings.Builder, n netsetup.Plan) {
	fmt.Fprintf(b, "\nnetwork %s: bridge %s", n.Network, n.Bridge)
	if n.Subnet != "" {
		fmt.Fprintf(b, ", %s", n.Subnet)
	}
	switch {
	case n.Up:
		b.WriteString(", which is up\n")
	case len(n.Steps) == 0:
		b.WriteString(", which is the host's own\n")
	default:
		b.WriteString(", set up by its first member\n")
	}
	for _, text := range n.Warnings {
		fmt.Fprintf(b, "  warning: %s\n", text)
	}
	printSteps(b, n.Steps)
	for _, port := range n.Ports {
		fmt.Fprintf(b, "\nnic %d: %s, %s on network %s\n", port.NIC, port.MAC, port.Link, n.Network)
		printSteps(b, port.Steps)
	}
}

func printSteps(b *strings.Builder, steps []netsetup.Step) {
	for _, s := range steps {
		fmt.Fprintf(b, "  %s\n", s.Do)
		if s.Undo != "" {
			fmt.Fprintf(b, "      undo: %s\n", s.Undo)
		}
	}
}

// commandText is a command line over several lines, which a shell would take:
// each option on a line with its value.
func commandText(argv []string) string {
	var b strings.Builder
	b.WriteString(shellQuote(filepath.Clean(argv[0])))
	for i, arg := range argv[1:] {
		if strings.HasPrefix(arg, "-") || i == 0 {
			b.WriteString(" \\\n    ")
		} else {
			b.WriteByte(' ')
		}
		b.WriteString(shellQuote(arg))
	}
	b.WriteByte('\n')
	return b.String()
}

// shellQuote makes an argument one word to a shell.
func shellQuote(s string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=+,./:@%"
	if s != "" && strings.Trim(s, plain) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
