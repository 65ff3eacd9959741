package control

import (
	"context"
	"errors"
	"io"

	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/wire"
)

// dumpArgs name a card.
type dumpArgs struct {
	NIC int `json:"nic"`
}

// dump sends the frames of a card in mode user until the client goes. The stream
// is opened when QEMU has begun to write them.
func (s *Server) dump(ctx context.Context, c *wire.Call) (any, error) {
	args, err := decode[dumpArgs](c)
	if err != nil {
		return nil, err
	}
	d, err := s.startDump(ctx, args.NIC)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	st, err := c.Start()
	if err != nil {
		return nil, err
	}
	d.CopyTo(ctx, st.Writer(wire.Stdout))
	return nil, nil
}

func (s *Server) startDump(ctx context.Context, nic int) (*vm.Dump, error) {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	ctx, unwatch := s.unlessStopped(ctx)
	defer unwatch()
	d, err := s.machine.StartDump(ctx, nic)
	return d, refusal(ctx, s.machine.PID(), err)
}

// OpenDump returns the frames of a card in mode user, as a pcap file that goes on
// until the machine ends or the reader is closed.
func OpenDump(ctx context.Context, m vm.Machine, nic int) (io.ReadCloser, error) {
	s, err := start(ctx, m, wire.Request{Verb: "dump", Args: dumpArgs{nic}})
	if err != nil {
		return nil, err
	}
	return &dumpReader{machine: m, stream: s}, nil
}

type dumpReader struct {
	machine vm.Machine
	stream  *wire.ClientStream
	rest    []byte
}

func (d *dumpReader) Read(p []byte) (int, error) {
	for len(d.rest) == 0 {
		got, err := d.stream.Receive()
		if done, ok := errors.AsType[*wire.Done](err); ok && done.Err == nil {
			return 0, io.EOF
		}
		if err != nil {
			return 0, Explain(context.Background(), d.machine, err)
		}
		d.rest = got.Data
	}
	n := copy(p, d.rest)
	d.rest = d.rest[n:]
	return n, nil
}

func (d *dumpReader) Close() error { return d.stream.Close() }
