package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/vmrun/vmrun/netsetup/capture"
	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/control"
)

// captureOptions are the flags of capture.
type captureOptions struct {
	file     string
	filter   string
	count    int
	snapshot int
}

const captureHelp = `Write the packets of a running VM's network cards as pcapng, to stdout or a file,
until interrupted or the VM ends:

  vmrun capture web | tshark -r -
  vmrun capture web nic1 -w lan.pcapng -f 'tcp port 80 and not host 10.70.0.1'

Without a NIC it is all of them. Outbound packets are those towards the guest. What
the guard drops on its way from the guest is seen; what never reaches the card is not.

Filters are tcpdump's: host, net, port, portrange with src and dst; arp, ip, ip6, icmp,
icmp6, tcp, udp, vlan; ether host; less, greater; and, or, not, parentheses.`

func newCaptureCommand() *cobra.Command {
	var o captureOptions
	cmd := &cobra.Command{
		Use:   "capture VM [NIC]",
		Short: "Write the packets of a VM's network cards as pcapng",
		Long:  captureHelp,
		Args: usageArgs(func(_ *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 {
				return fmt.Errorf("want a VM and perhaps a NIC, got %d arguments", len(args))
			}
			return nil
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			filter, err := o.check()
			if err != nil {
				return usageError{cmd.CommandPath(), err}
			}
			m, err := oneVM(cmd.Context(), args[0])
			if err == nil {
				err = living(m, "capture packets of")
			}
			if err != nil {
				return err
			}
			nics, err := chosenNICs(m, args[1:])
			if err != nil {
				return usageError{cmd.CommandPath(), err}
			}
			return o.run(cmd, m, nics, filter)
		},
		ValidArgsFunction: completeVMThen(nicsOf),
	}
	f := cmd.Flags()
	f.StringVarP(&o.file, "write", "w", "-", "file to write to; - is stdout")
	f.StringVarP(&o.filter, "filter", "f", "", "which packets, as tcpdump has it")
	f.IntVarP(&o.count, "count", "c", 0, "end after so many packets; 0: never")
	f.IntVarP(&o.snapshot, "snapshot-length", "s", capture.MaxSnapshot, "bytes to keep of each packet")
	return cmd
}

func (o captureOptions) check() (capture.Filter, error) {
	switch {
	case o.count < 0:
		return capture.Filter{}, fmt.Errorf("--count %d: want a number that is not negative", o.count)
	case o.snapshot < 1 || o.snapshot > capture.MaxSnapshot:
		return capture.Filter{}, fmt.Errorf("--snapshot-length %d: want 1 to %d", o.snapshot, capture.MaxSnapshot)
	case o.file == "-" && term.IsTerminal(int(os.Stdout.Fd())):
		return capture.Filter{}, errors.New("a terminal shows no packets: write to a file with -w, or to a program, as tshark -r -")
	}
	return capture.ParseFilter(o.filter)
}

// chosenNICs are the indexes of the cards that are named, or all.
func chosenNICs(m vm.Machine, names []string) ([]int, error) {
	cards := m.Cards()
	if len(cards) == 0 {
		return nil, fmt.Errorf("%s has no network card", m.Name)
	}
	var chosen []int
	for i, n := range cards {
		if len(names) == 0 || names[0] == n.ID || names[0] == strings.TrimPrefix(n.ID, "nic") || names[0] == n.Network {
			chosen = append(chosen, i)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("%s has no card %s: want %s, or a network's name", m.Name, names[0], cardNames(cards))
	}
	return chosen, nil
}

func cardNames(cards []vm.NICStatus) string {
	var names []string
	for _, n := range cards {
		names = append(names, n.ID)
	}
	return strings.Join(names, ", ")
}

func nicsOf(_ context.Context, m vm.Machine) []string {
	var names []string
	for _, n := range m.Cards() {
		names = append(names, cobra.CompletionWithDesc(n.ID, n.Network))
	}
	return names
}

// packetSource is a card that is listened to.
type packetSource interface {
	Read() (capture.Packet, error)
	Statistics() (capture.Statistics, error)
	Close() error
}

// run captures until it is enough.
func (o captureOptions) run(cmd *cobra.Command, m vm.Machine, nics []int, filter capture.Filter) error {
	ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	var interfaces []capture.Interface
	var sources []packetSource
	defer func() {
		for _, s := range sources {
			s.Close()
		}
	}()
	cards := m.Cards()
	for _, i := range nics {
		s, err := o.open(ctx, m, i)
		if err != nil {
			return fmt.Errorf("capture packets of %s: %w", m.Name, err)
		}
		sources = append(sources, s)
		name := cards[i].Link
		if name == "" {
			name = cards[i].ID
		}
		interfaces = append(interfaces, capture.Interface{Name: name, Snapshot: o.snapshot, Filter: o.filter,
			Description: fmt.Sprintf("%s %s (%s)", m.Name, cards[i].ID, cards[i].Network)})
	}
	out, err := o.openFile()
	if err != nil {
		return err
	}
	w, err := capture.NewWriter(out, "vmrun "+buildVersion().Version, interfaces)
	if err != nil {
		return errors.Join(err, out.Close())
	}
	session := &captureSession{options: o, filter: filter, out: w, sources: sources}
	err = session.run(ctx)
	fmt.Fprintf(cmd.ErrOrStderr(), "vmrun: packets captured: %d, dropped for lack of time: %d\n", session.written.Load(), session.dropped)
	return errors.Join(err, out.Close())
}

func (o captureOptions) openFile() (*os.File, error) {
	if o.file == "-" {
		return os.Stdout, nil
	}
	return os.Create(o.file)
}

// open listens to a card: at its TAP, or in mode user where QEMU has it.
func (o captureOptions) open(ctx context.Context, m vm.Machine, nic int) (packetSource, error) {
	if link := m.Cards()[nic].Link; link != "" {
		s, err := capture.Open(link, o.snapshot)
		if errors.Is(err, unix.EPERM) {
			err = fmt.Errorf("%w (run vmrun with sudo: a TAP is listened to by root alone)", err)
		}
		return s, err
	}
	dump, err := control.OpenDump(ctx, m, nic)
	if err != nil {
		return nil, err
	}
	return capture.NewDump(bufio.NewReader(dump), dump, o.snapshot), nil
}

// captureSession writes what sources give.
type captureSession struct {
	options captureOptions
	filter  capture.Filter
	out     *capture.Writer
	sources []packetSource
	written atomic.Int64

	end     func() // counts what was dropped and closes the sources, once
	dropped int
}

// run ends with ctx, with all sources, or when there are packets enough.
func (s *captureSession) run(ctx context.Context) error {
	ctx, enough := context.WithCancel(ctx)
	defer enough()
	s.end = sync.OnceFunc(s.finish)
	defer s.end()
	defer context.AfterFunc(ctx, s.end)()
	errs := make([]error, len(s.sources))
	var all sync.WaitGroup
	for i, source := range s.sources {
		all.Go(func() {
			errs[i] = s.copy(i, source, enough)
			if errs[i] != nil {
				enough()
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// copy writes one source's packets.
func (s *captureSession) copy(index int, source packetSource, enough func()) error {
	for {
		p, err := source.Read()
		switch {
		case errors.Is(err, os.ErrClosed), errors.Is(err, io.EOF), errors.Is(err, capture.ErrGone):
			return nil
		case err != nil:
			return err
		case !s.filter.Wants(p):
			continue
		}
		n := s.written.Add(1)
		if limit := int64(s.options.count); limit > 0 && n > limit {
			s.written.Add(-1)
			return nil
		}
		if err := s.out.Packet(index, p); err != nil {
			if errors.Is(err, unix.EPIPE) {
				err = nil // whoever read has seen enough
			}
			enough()
			return err
		}
		if n == int64(s.options.count) {
			enough()
			return nil
		}
	}
}

// finish writes the sources' statistics, as far as they are to be had: the packets
// are what counts.
func (s *captureSession) finish() {
	for i, source := range s.sources {
		if stats, err := source.Statistics(); err == nil {
			s.dropped += stats.Dropped
			_ = s.out.Statistics(i, stats, time.Now())
		}
		source.Close()
	}
}
