package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/netsetup"
	"github.com/vmrun/vmrun/profiles"
	"github.com/vmrun/vmrun/vm"
)

// Why vmrun ends a VM that did not end by itself. The third is a signalError.
var (
	errTimeout = errors.New("ended by --timeout")
	errEscape  = errors.New("ended by the escape")
)

// runner is one run of a VM in the foreground.
type runner struct {
	options runOptions
	escape  byte
	stderr  *lineWriter
	log     *slog.Logger // to stderr
	signals <-chan os.Signal

	// sweepNetworks is netsetup.Sweep.
	sweepNetworks func(context.Context, netsetup.Host) ([]string, error)
}

// run boots the VM of a profile and returns how it ended.
func (r *runner) run(ctx context.Context, file string) outcome {
	profile, err := profiles.Load(file)
	if err != nil {
		return outcome{code: exitUsage, by: "profile", reason: "bad-profile", cause: err}
	}
	signals, stop := listen()
	defer stop()
	r.signals = signals
	if r.options.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, r.options.timeout, errTimeout)
		defer cancel()
	}
	end := r.runProfile(ctx, profile)
	end.vm = profile.Name
	return end
}

func (r *runner) runProfile(ctx context.Context, profile *profiles.Profile) outcome {
	host, err := detectHost()
	if err != nil {
		return launchFailure(err)
	}
	host.Log = r.log
	plan, err := vm.NewPlan(profile, host)
	if err != nil {
		return launchFailure(err)
	}
	instance, signal, err := r.launch(ctx, plan, host)
	if err != nil {
		return launchFailure(err)
	}
	r.introduce(plan, instance)
	end := r.attend(ctx, instance, signal)
	_, asked := errors.AsType[signalError](end.cause)
	if err := r.undo(instance.Close, asked); err != nil {
		end.cause = errors.Join(end.cause, teardownError{err})
		end.code = max(end.code, exitFailed)
	}
	return end
}

// launch boots the VM, on a host where nothing of killed runs is in its way. A
// signal that came too late to prevent it is returned with the VM.
func (r *runner) launch(ctx context.Context, plan *vm.Plan, host vm.Host) (instance *vm.Instance, signal unix.Signal, err error) {
	// Before anything is touched, and again by Launch.
	if err := plan.Check(); err != nil {
		return nil, 0, err
	}
	signal = untilSignal(ctx, r.signals, func(ctx context.Context) {
		r.sweep(ctx, plan, host)
		instance, err = vm.Launch(ctx, plan, host, vm.Options{})
	})
	switch {
	case err != nil && signal != 0:
		err = signalError{signal}
	case err != nil && ctx.Err() != nil:
		err = context.Cause(ctx)
	}
	return instance, signal, err
}

// undo runs the undo of a launch. It is given up at a second signal, of which
// those from before count as the first, since people and programs may well send
// several at once. Keepers go on without us, and gc with what they can't do.
func (r *runner) undo(undo func() error, asked bool) error {
	for len(r.signals) > 0 {
		<-r.signals
		asked = true
	}
	done := make(chan error, 1)
	go func() { done <- undo() }()
	for {
		select {
		case err := <-done:
			return err
		case s := <-r.signals:
			if asked {
				return fmt.Errorf("cut short by %s", unix.SignalName(s.(unix.Signal)))
			}
			asked = true
			r.log.Info("the VM has ended and its launch is being undone; asking again leaves the rest as it is")
		}
	}
}

// sweep undoes what killed runs left of networks before another one comes up.
// What it can't undo now does not hinder this run, and gc tells it again.
func (r *runner) sweep(ctx context.Context, plan *vm.Plan, host vm.Host) {
	if !slices.ContainsFunc(plan.NICs, func(n vm.NIC) bool { return n.Spec != nil }) {
		return
	}
	removed, err := r.sweepNetworks(ctx, networkHost(host))
	for _, line := range removed {
		r.log.Info("left behind by a killed run: " + line)
	}
	if err != nil && ctx.Err() == nil {
		r.log.Warn("undo what a killed run left", "cause", err)
	}
}

// introduce tells people what there is now.
func (r *runner) introduce(plan *vm.Plan, instance *vm.Instance) {
	for i, nic := range instance.NICs() {
		for _, line := range nicLines(nic, plan.NICs[i].Forwards) {
			r.log.Info(plan.Name + ": " + line)
		}
	}
}

// attend stays with a running VM until it has ended. A signal that came during
// the launch counts.
func (r *runner) attend(ctx context.Context, instance *vm.Instance, early unix.Signal) outcome {
	s, err := r.openScreen(instance.Console())
	if err != nil {
		return outcome{code: exitHost, by: "host", reason: "terminal", cause: err}
	}
	defer s.Close()
	w := &watch{runner: r, instance: instance, actions: s.actions}
	if early != 0 {
		w.end(signalError{early})
	}
	ending := w.wait(ctx)
	s.drain(ctx, r.signals)
	return endOutcome(ending, w.cause)
}
