package control

import (
	"context"
	"errors"
	"time"

	"github.com/vmrun/vmrun/images"
	"github.com/vmrun/vmrun/profiles"
	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/wire"
)

// DevicePatience is how long a device may take to come or to go: a guest has to
// let go of it.
const DevicePatience = 30 * time.Second

// detachArgs name a device.
type detachArgs struct {
	ID string `json:"id"`
}

// resizeArgs are what a machine is to have; 0: what it has.
type resizeArgs struct {
	CPUs   int   `json:"cpus,omitempty"`
	Memory int64 `json:"memory,omitempty"` // bytes
}

func resize(ctx context.Context, m *vm.Instance, a resizeArgs) (any, error) {
	var errs []error
	if a.CPUs > 0 {
		errs = append(errs, m.SetCPUs(ctx, a.CPUs))
	}
	if a.Memory > 0 {
		errs = append(errs, m.SetMemory(ctx, a.Memory))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return m.Resources(ctx)
}

// attached tells listeners of a device that came.
func (s *Server) attached(a vm.Attachment, err error) (any, error) {
	if err == nil {
		s.feed.publish("vmrun", EventAttached, time.Now(), a)
	}
	return a, err
}

// detach takes a device away, and tells listeners that it went.
func (s *Server) detach(ctx context.Context, a detachArgs) error {
	err := s.machine.Detach(ctx, a.ID)
	if err == nil {
		s.feed.publish("vmrun", "DETACHED", time.Now(), a)
	}
	return err
}

// AttachDisk gives a running machine one more disk. The path is absolute.
func AttachDisk(ctx context.Context, m vm.Machine, spec images.DiskSpec) (vm.Attachment, error) {
	var a vm.Attachment
	return a, ask(ctx, m, wire.Request{Verb: "attach-disk", Args: spec, Timeout: DevicePatience}, &a)
}

// AttachNIC gives a running machine one more network card.
func AttachNIC(ctx context.Context, m vm.Machine, nic profiles.NIC) (vm.Attachment, error) {
	var a vm.Attachment
	return a, ask(ctx, m, wire.Request{Verb: "attach-nic", Args: nic, Timeout: DevicePatience}, &a)
}

// Detach takes a device away that was attached.
func Detach(ctx context.Context, m vm.Machine, id string) error {
	return ask(ctx, m, wire.Request{Verb: "detach", Args: detachArgs{id}, Timeout: DevicePatience}, nil)
}

// Attachments are the devices that were attached to a machine.
func Attachments(ctx context.Context, m vm.Machine) ([]vm.Attachment, error) {
	var all []vm.Attachment
	return all, ask(ctx, m, wire.Request{Verb: "attachments", Timeout: Patience}, &all)
}

// Resize gives a machine other numbers of CPUs or bytes of memory, 0 being what
// it has, and returns what it has then.
func Resize(ctx context.Context, m vm.Machine, cpus int, memory int64) (vm.Resources, error) {
	var r vm.Resources
	return r, ask(ctx, m, wire.Request{Verb: "resize", Args: resizeArgs{cpus, memory}, Timeout: 2 * DevicePatience}, &r)
}
