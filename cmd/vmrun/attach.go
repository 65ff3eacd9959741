package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/vmrun/vmrun/images"
	"github.com/vmrun/vmrun/profiles"
	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/control"
)

func newAttachCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "attach disk|nic VM …",
		Short: "Give a running VM a disk or a network card",
		Long: "Give a running VM a disk or a network card, and print the name by which detach takes\n" +
			"it away. At the VM's end it goes with the rest. A q35 has room for four; a microvm\nfor none.",
		Args: cobra.ArbitraryArgs,
		RunE: unknownCommand,
	}
	cmd.AddCommand(newAttachDiskCommand(), newAttachNICCommand())
	return cmd
}

// attachArgs are a VM and what it gets.
func attachArgs(what string) cobra.PositionalArgs {
	return usageArgs(func(_ *cobra.Command, args []string) error {
		if len(args) != 2 {
			return fmt.Errorf("want a VM and %s, got %d arguments", what, len(args))
		}
		return nil
	})
}

func newAttachDiskCommand() *cobra.Command {
	var keep bool
	var format, size string
	cmd := &cobra.Command{
		Use:   "disk VM IMAGE",
		Short: "Give a running VM a disk",
		Args:  attachArgs("an IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			spec, err := diskSpec(args[1], format, size, keep)
			if err != nil {
				return usageError{cmd.CommandPath(), err}
			}
			return attachTo(cmd, args[0], func(ctx context.Context, m vm.Machine) (vm.Attachment, error) {
				return control.AttachDisk(ctx, m, spec)
			})
		},
		ValidArgsFunction: completeVMThen(nil),
	}
	f := cmd.Flags()
	f.BoolVar(&keep, "keep", false, "write changes to the image instead of throwing them away")
	f.StringVar(&format, "format", "auto", "layout of the image: auto, qcow2 or raw; with --keep, auto goes by the name's suffix")
	f.StringVar(&size, "size", "", "what the guest sees at least, with its unit, as 10GiB")
	return cmd
}

// diskSpec is a disk as a profile would describe it.
func diskSpec(path, format, size string, keep bool) (spec images.DiskSpec, err error) {
	spec = images.DiskSpec{Format: images.Format(format), Keep: keep}
	if spec.Path, err = filepath.Abs(path); err != nil {
		return spec, err
	}
	if size != "" {
		n, err := profiles.ParseSize(size)
		if err != nil || n == 0 || n%512 != 0 {
			return spec, fmt.Errorf("--size %s: want whole sectors of 512 bytes with a unit, as 10GiB", size)
		}
		spec.Size = int64(n)
	}
	switch spec.Format {
	case images.FormatQCOW2, images.FormatRaw:
	case images.FormatAuto:
		if keep {
			spec.Format = images.Format(profiles.KeptFormat(path))
		}
		if keep && spec.Format == images.FormatAuto {
			return spec, errors.New("--keep needs --format qcow2 or raw here: the guest could change what is found in the image")
		}
	default:
		return spec, fmt.Errorf("--format %s: want auto, qcow2 or raw", format)
	}
	return spec, nil
}

func newAttachNICCommand() *cobra.Command {
	var mac, ip string
	var queues int
	cmd := &cobra.Command{
		Use:   "nic VM NETWORK",
		Short: "Give a running VM a network card",
		Long:  "Give a running VM a card on a network of its profile, or on nat or host-only.",
		Args:  attachArgs("a NETWORK"),
		RunE: func(cmd *cobra.Command, args []string) error {
			nic, err := newCard(args[1], mac, ip, queues)
			if err != nil {
				return usageError{cmd.CommandPath(), err}
			}
			return attachTo(cmd, args[0], func(ctx context.Context, m vm.Machine) (vm.Attachment, error) {
				return control.AttachNIC(ctx, m, nic)
			})
		},
		ValidArgsFunction: completeVMThen(networksOf),
	}
	f := cmd.Flags()
	f.StringVar(&mac, "mac", "", "MAC address (default: derived from the VM's name)")
	f.StringVar(&ip, "ip", "", "address that the network gives to this card")
	f.IntVar(&queues, "queues", 1, "queue pairs of the card")
	return cmd
}

func newCard(network, mac, ip string, queues int) (nic profiles.NIC, err error) {
	nic = profiles.NIC{Network: network, Queues: queues}
	if queues < 1 || queues > 256 {
		return nic, fmt.Errorf("--queues %d: want 1 to 256", queues)
	}
	if mac != "" {
		if nic.MAC, err = net.ParseMAC(mac); err != nil || len(nic.MAC) != 6 || nic.MAC[0]&1 != 0 {
			return nic, fmt.Errorf("--mac %s: want the address of one card, as 52:54:00:aa:bb:cc", mac)
		}
	}
	if ip != "" {
		if nic.IP, err = netip.ParseAddr(ip); err != nil || !nic.IP.Is4() {
			return nic, fmt.Errorf("--ip %s: want an IPv4 address", ip)
		}
	}
	return nic, nil
}

// attachTo has a VM get something and prints its name.
func attachTo(cmd *cobra.Command, name string, attach func(context.Context, vm.Machine) (vm.Attachment, error)) error {
	m, err := oneVM(cmd.Context(), name)
	if err == nil {
		err = living(m, "attach to")
	}
	if err != nil {
		return err
	}
	a, err := attach(cmd.Context(), m)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), a.ID)
	return err
}

func newDetachCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "detach VM DEVICE",
		Short: "Take a disk or a card away that was attached",
		Long: "Take a disk or a network card away that attach gave a running VM. The guest has to\n" +
			"let go of it. Devices of the profile stay.",
		Args: attachArgs("a DEVICE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := oneVM(cmd.Context(), args[0])
			if err == nil {
				err = living(m, "detach from")
			}
			if err != nil {
				return err
			}
			return control.Detach(cmd.Context(), m, args[1])
		},
		ValidArgsFunction: completeVMThen(devicesOf),
	}
}

// completeVMThen completes a VM that lives, then what there is of it; nil: files.
func completeVMThen(of func(context.Context, vm.Machine) []string) cobra.CompletionFunc {
	vms := completeVMs(vm.Machine.Alive)
	return func(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		switch {
		case len(args) == 0:
			return vms(cmd, args, word)
		case len(args) > 1:
			return nil, cobra.ShellCompDirectiveNoFileComp
		case of == nil:
			return nil, cobra.ShellCompDirectiveDefault
		}
		m, err := oneVM(cmd.Context(), args[0])
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return of(cmd.Context(), m), cobra.ShellCompDirectiveNoFileComp
	}
}

// networksOf are the networks that a VM can get cards on.
func networksOf(_ context.Context, m vm.Machine) []string {
	names := []string{"nat", "host-only"}
	if m.Plan == nil {
		return names
	}
	for name, n := range m.Plan.Networks {
		if _, built := profiles.Builtin(name); !built && n.Mode != profiles.User {
			names = append(names, name)
		}
	}
	return names
}

func devicesOf(ctx context.Context, m vm.Machine) []string {
	var names []string
	all, _ := control.Attachments(ctx, m)
	for _, a := range all {
		names = append(names, a.ID)
	}
	return names
}

const resizeHelp = `Give a running VM other numbers of CPUs or another amount of memory.

CPUs: up to max_cpus of its profile, and not below cpus. The guest brings new ones
into use, the micro guest by itself, and has to let go of those that are taken;
under TCG none can be taken.
Memory: down from what the VM was started with, and up to it again, as far as the
guest gives it back.`

func newResizeCommand() *cobra.Command {
	var cpus int
	var memory string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "resize VM",
		Short: "Change the CPUs or the memory of a running VM",
		Long:  resizeHelp,
		Args:  usageArgs(singleVM),
		RunE: func(cmd *cobra.Command, args []string) error {
			bytes, err := resizeSizes(cpus, memory, cmd.Flags().Changed("cpus"))
			if err != nil {
				return usageError{cmd.CommandPath(), err}
			}
			m, err := oneVM(cmd.Context(), args[0])
			if err == nil {
				err = living(m, "resize")
			}
			if err != nil {
				return err
			}
			r, err := control.Resize(cmd.Context(), m, cpus, bytes)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), r)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %d CPUs, %v of memory\n", m.Name, r.CPUs, profiles.Size(r.Memory))
			return err
		},
		ValidArgsFunction: completeOneVM(vm.Machine.Alive),
	}
	f := cmd.Flags()
	f.IntVar(&cpus, "cpus", 0, "number of CPUs")
	f.StringVar(&memory, "memory", "", "memory with its unit, as 256MiB")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func resizeSizes(cpus int, memory string, cpusGiven bool) (bytes int64, err error) {
	switch {
	case !cpusGiven && memory == "":
		return 0, errors.New("want --cpus or --memory")
	case cpusGiven && cpus < 1:
		return 0, fmt.Errorf("--cpus %d: want at least 1", cpus)
	case memory == "":
		return 0, nil
	}
	size, err := profiles.ParseSize(memory)
	if err != nil {
		return 0, fmt.Errorf("--memory: %w", err)
	}
	return int64(size), nil
}
