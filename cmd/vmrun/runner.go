package main

import (
	"context"
	"errors"
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
	r.sweep(ctx, plan, host)
	var instance *vm.Instance
	signal := untilSignal(ctx, r.signals, func(ctx context.Context) {
		instance, err = vm.Launch(ctx, plan, host, vm.Options{})
	})
	switch {
	case err != nil && signal != 0:
		return launchFailure(signalError{signal})
	case err != nil && ctx.Err() != nil:
		return launchFailure(context.Cause(ctx))
	case err != nil:
		return launchFailure(err)
	}
	r.introduce(plan, instance)
	end := r.attend(ctx, instance, signal)
	if err := instance.Close(); err != nil {
		end.cause = errors.Join(end.cause, teardownError{err})
		end.code = max(end.code, exitFailed)
	}
	return end
}

// sweep undoes what killed runs left of networks before another one comes up.
// What it can't undo now does not hinder this run, and gc tells it again.
func (r *runner) sweep(ctx context.Context, plan *vm.Plan, host vm.Host) {
	if !slices.ContainsFunc(plan.NICs, func(n vm.NIC) bool { return n.Spec != nil }) {
		return
	}
	removed, err := netsetup.Sweep(ctx, networkHost(host))
	for _, line := range removed {
		r.log.Info("left behind by a killed run: " + line)
	}
	if err != nil {
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
