package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/user"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/netsetup"
	"github.com/vmrun/vmrun/profiles"
	"github.com/vmrun/vmrun/vm"
)

// raised is what net up says of a network.
type raised struct {
	netsetup.Summary
	Already bool `json:"already"` // it was up before
}

type upOptions struct {
	group      string
	foreground bool
	asJSON     bool
}

func newNetUpCommand() *cobra.Command {
	var o upOptions
	cmd := &cobra.Command{
		Use:   "up FILE",
		Short: "Keep the networks of a file up without VMs",
		Long: "Bring up the networks that a file defines, and those built in that its NICs name,\n" +
			"and keep them up until vmrun net down. The file may have nothing but [networks.*].\n\n" +
			"With --group, members of that group run VMs on them without root, from the same\n" +
			"file or one in its folder, or from anywhere if the network has shared = true.\n\n" +
			"With --foreground they are kept up until a signal. While VMs are on them, that\n" +
			"is when the last has ended; a second signal does not wait for it.\n\n" +
			"Signal n before all are up takes back what is, and the exit code is 128+n.",
		Args: usageArgs(oneFile),
		RunE: func(cmd *cobra.Command, args []string) error {
			return netUp(cmd, args[0], o)
		},
		ValidArgsFunction: completeProfiles,
	}
	f := cmd.Flags()
	f.StringVar(&o.group, "group", "", "whose members may run VMs on the networks without root")
	f.BoolVar(&o.foreground, "foreground", false, "stay, and keep them up until a signal")
	f.BoolVar(&o.asJSON, "json", false, "print JSON")
	return cmd
}

func netUp(cmd *cobra.Command, file string, o upOptions) error {
	networks, err := profiles.LoadNetworks(file)
	if err != nil {
		return err
	}
	u := &raising{foreground: o.foreground, log: styleOf(cmd.Context()).messages(cmd.ErrOrStderr(), o.asJSON)}
	if u.group, err = lookUpGroup(o.group); err != nil {
		return err
	}
	host, err := locateHost()
	if err != nil {
		return err
	}
	if !host.Privileged {
		return &vm.HostError{Need: vm.NeedPrivilege, Err: errors.New("bring networks up: only root can")}
	}
	host.Log = u.log
	u.host = networkHost(host)
	signals, stop := listen()
	defer stop()
	all, err := u.raise(cmd.Context(), signals, networks)
	if err == nil {
		err = printRaised(cmd.OutOrStdout(), all, o.asJSON)
	}
	if err != nil {
		return err
	}
	return u.stay(signals)
}

// lookUpGroup finds a group by name or number; nil without one.
func lookUpGroup(name string) (*netsetup.Group, error) {
	if name == "" {
		return nil, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		if g, err = user.LookupGroupId(name); err != nil {
			return nil, fmt.Errorf("look up --group: this host has no group %s", name)
		}
	}
	id, err := strconv.ParseUint(g.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("look up --group %s: %w", name, err)
	}
	return &netsetup.Group{ID: uint32(id), Name: g.Name}, nil
}

// raising is networks on their way up.
type raising struct {
	host       netsetup.Host
	group      *netsetup.Group
	foreground bool
	log        *slog.Logger

	holds []*netsetup.Hold // in the foreground
	names []string         // IDs of those that others hold now, because of us
}

// raise brings networks up, or leaves none that was not up before. A signal that
// comes before all are up is why there are none, whatever it has cut short.
func (u *raising) raise(ctx context.Context, signals <-chan os.Signal, networks []profiles.Network) ([]raised, error) {
	var all []raised
	var left error // of undoing
	err, signal, finished := untilSignal(ctx, signals, func(ctx context.Context) (err error) {
		restoreHost(ctx, u.host, u.log, netsetup.Sweep)
		if all, err = u.each(ctx, networks); err != nil {
			left = u.lower()
		}
		return err
	})
	switch {
	case !finished:
		return nil, endedBy(signal, teardownError{errors.New("cut short by another signal")})
	case err == nil && signal != 0:
		return nil, endedBy(signal, u.lower())
	case signal != 0:
		return nil, endedBy(signal, left)
	}
	return all, errors.Join(err, left)
}

// endedBy is the end by a signal, with what could not be undone.
func endedBy(signal unix.Signal, left error) error {
	return exitError{exitSignal + int(signal), errors.Join(signalError{signal}, left)}
}

// each brings up one network after the other: one takes a range, the next looks
// for a free one.
func (u *raising) each(ctx context.Context, networks []profiles.Network) ([]raised, error) {
	all := []raised{}
	for _, n := range networks {
		one, err := u.one(ctx, vm.NetworkSpec(n))
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, nil
}

func (u *raising) one(ctx context.Context, spec netsetup.Spec) (r raised, err error) {
	if u.foreground {
		var h *netsetup.Hold
		if h, err = netsetup.StartHold(ctx, u.host, spec, u.group); err == nil {
			u.holds = append(u.holds, h)
		}
	} else if err = netsetup.StartHolder(ctx, u.host, spec, u.group); err == nil {
		u.names = append(u.names, spec.ID())
	}
	r.Already = errors.Is(err, netsetup.ErrHeld)
	if err != nil && !r.Already {
		return r, err
	}
	report, err := netsetup.Inspect(ctx, u.host, spec.Name, spec.Dir)
	if errors.As(err, new(*netsetup.NotFoundError)) {
		return r, fmt.Errorf("bring network %s up: somebody has taken it down again", spec.Name)
	}
	if err != nil {
		return r, err
	}
	r.Summary = report.Summary
	r.Summary.Members, r.Summary.Holders = len(report.Members), len(report.Holders)
	return r, nil
}

// lower takes back what was brought up.
func (u *raising) lower() error {
	var errs []error
	for _, h := range u.holds {
		h.Release()
		errs = append(errs, h.Wait())
	}
	for _, name := range u.names {
		err := netsetup.Down(context.Background(), u.host, name, "")
		if !errors.As(err, new(*netsetup.NotFoundError)) { // else somebody has taken it down
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// stay waits in the foreground until all networks are down, or for two signals.
func (u *raising) stay(signals <-chan os.Signal) error {
	ended := make(chan error, len(u.holds))
	for _, h := range u.holds {
		go func() {
			select {
			case vms := <-h.Draining():
				u.log.Info(fmt.Sprintf("the network goes down with the last VM on it (%s)", strings.Join(vms, ", ")))
			case <-h.Done():
			}
			ended <- h.Wait()
		}()
	}
	asked := false
	var errs []error
	for len(errs) < len(u.holds) {
		select {
		case err := <-ended:
			errs = append(errs, err)
		case <-signals:
			if asked {
				return errors.Join(append(errs, errors.New("left before the VMs have ended"))...)
			}
			asked = true
			for _, h := range u.holds {
				h.Release()
			}
		}
	}
	return errors.Join(errs...)
}

func printRaised(w io.Writer, all []raised, asJSON bool) error {
	if asJSON {
		return printJSON(w, all)
	}
	for _, n := range all {
		state := "is up"
		if n.Already {
			state = "is up already"
		}
		line := fmt.Sprintf("network %s %s: bridge %s", n.Name, state, n.Bridge)
		if n.Subnet.IsValid() {
			line += fmt.Sprintf(", %s", n.Subnet)
		}
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}
