package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/netsetup"
	"github.com/vmrun/vmrun/profiles"
	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/control"
)

// Why vmrun ends a VM that did not end by itself. The third is a signalError.
var (
	errTimeout = errors.New("ended by --timeout")
	errEscape  = errors.New("ended by the escape")
)

// runner is one run of a VM: in the foreground, or as a supervisor in the
// background, which is the same without a console.
type runner struct {
	options runOptions
	escape  byte
	style   style
	stderr  *lineWriter
	spins   bool         // stderr is a terminal, for a line that tells of progress
	log     *slog.Logger // to stderr
	signals <-chan os.Signal

	// sweepNetworks is netsetup.Sweep.
	sweepNetworks func(context.Context, netsetup.Host) ([]string, error)
	notify        notifySocket // systemd's; "": nobody is told
	supervisor    *os.File     // pidfd of the one that was started; nil: there is none

	// ready is told in the background that the VM runs; nil: in the foreground.
	ready func()
	// evidence is what is known where the boot failed; nil: there was no plan.
	evidence  *evidence
	reporting reporting
}

// run boots the VM of a profile and returns how it ended.
func (r *runner) run(ctx context.Context, file string) outcome {
	signals, stop := listen()
	defer stop()
	r.signals = signals
	return r.tryNames(ctx, file, func(plan *vm.Plan, host vm.Host) outcome { return r.runPlan(ctx, plan, host) })
}

// tryNames plans the VM of a profile and runs it, under another name where the
// one was just taken and --name has a number.
func (r *runner) tryNames(ctx context.Context, file string, run func(*vm.Plan, vm.Host) outcome) outcome {
	n := &names{template: r.options.name}
	last := outcome{code: exitHost, by: "host", reason: "host", cause: errNoNames}
	for {
		plan, host, end := r.plan(ctx, file, n)
		switch {
		case end != nil && errors.Is(end.cause, errNoNames):
			return last
		case end != nil:
			return *end
		}
		last = run(plan, host)
		last.vm = plan.Name
		if !isTaken(last.cause) {
			return last
		}
	}
}

// plan makes the plan of a profile, or says why there is none.
func (r *runner) plan(ctx context.Context, file string, n *names) (*vm.Plan, vm.Host, *outcome) {
	fail := func(name string, end outcome) (*vm.Plan, vm.Host, *outcome) {
		end.vm = name
		return nil, vm.Host{}, &end
	}
	// The profile first: its faults are told on any host.
	profile, err := profiles.LoadWith(file, r.options.settings(strings.Replace(n.template, numberMark, "1", 1)))
	if err != nil {
		return fail("", outcome{code: exitUsage, by: "profile", reason: "bad-profile", cause: err})
	}
	host, err := detectHost()
	if err != nil {
		return fail(profile.Name, launchFailure(err))
	}
	host.Log = r.log
	n.host = host
	name, err := n.next(ctx)
	if err == nil && name != "" {
		profile, err = profiles.LoadWith(file, r.options.settings(name))
	}
	if err != nil {
		return fail(profile.Name, launchFailure(err))
	}
	plan, err := vm.NewPlan(profile, host)
	if err != nil {
		return fail(profile.Name, launchFailure(err))
	}
	return plan, host, nil
}

// runPlan launches a VM, stays with it until its end, and undoes the launch.
func (r *runner) runPlan(ctx context.Context, plan *vm.Plan, host vm.Host) outcome {
	if r.options.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, r.options.timeout, errTimeout)
		defer cancel()
	}
	feed := control.NewFeed(plan.Name)
	host.Log = slog.New(feed.Handler(r.log.Handler()))
	r.evidence = &evidence{host: host, plan: plan}
	instance, signal, err := r.launch(ctx, plan, host)
	if err != nil {
		return launchFailure(err)
	}
	server := control.Serve(instance, feed, r.log)
	defer server.Close()
	r.introduce(plan, instance)
	end := r.attend(ctx, instance, signal)
	end.vm = plan.Name
	if isFailedBoot(end) {
		r.evidence.look(instance)
	}
	if err := r.notify.tell(notifyStopping); err != nil {
		r.log.Warn("tell that the VM has ended", "cause", err)
	}
	r.reportFirst(end)
	told := end.public()
	instance.NoteEnd(vm.End{Code: told.Code, By: told.By, Reason: told.Reason, Error: told.Error})
	_, asked := errors.AsType[signalError](end.cause)
	if err := r.undo(instance.Close, asked); err != nil {
		end.cause = errors.Join(end.cause, teardownError{err})
		end.code = max(end.code, exitFailed)
		r.reportFirst(end)
	}
	server.End(end.public())
	return end
}

// launch boots the VM, on a host where nothing of killed runs is in its way. A
// signal that came too late to prevent it is returned with the VM.
func (r *runner) launch(ctx context.Context, plan *vm.Plan, host vm.Host) (instance *vm.Instance, signal unix.Signal, err error) {
	// Before anything is touched, and again by Launch.
	if err := plan.Check(ctx, host); err != nil {
		return nil, 0, err
	}
	if r.ready == nil { // else whoever started this says it
		defer r.progress("launching " + plan.Name)()
	}
	type launched struct {
		instance *vm.Instance
		err      error
	}
	l, signal, finished := untilSignal(ctx, r.signals, func(ctx context.Context) (l launched) {
		r.sweep(ctx, plan, host)
		l.instance, l.err = vm.Launch(ctx, plan, host, vm.Options{Keep: !r.options.remove})
		return l
	})
	instance, err = l.instance, l.err
	switch {
	case !finished:
		err = errors.Join(signalError{signal}, teardownError{errors.New("cut short by another signal")})
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
func (r *runner) sweep(ctx context.Context, plan *vm.Plan, host vm.Host) {
	if !slices.ContainsFunc(plan.NICs, func(n vm.NIC) bool { return n.Spec != nil }) {
		return
	}
	restoreHost(ctx, networkHost(host), r.log, r.sweepNetworks)
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
	w := &watch{runner: r, instance: instance}
	if early != 0 {
		w.end(signalError{early})
	}
	if r.ready != nil {
		r.ready()
		return endOutcome(w.wait(ctx), w.cause)
	}
	if r.notify != "" {
		w.failed = r.becomeReady(ctx, instance)
	}
	if len(r.options.command) > 0 {
		return r.attendCommand(ctx, w)
	}
	s, err := r.openScreen(instance.Console(), "ends the VM")
	if err != nil {
		return outcome{code: exitHost, by: "host", reason: "terminal", cause: err}
	}
	defer s.Close()
	w.actions = s.actions
	ending := w.wait(ctx)
	s.drain(ctx, r.signals)
	return endOutcome(ending, w.cause)
}
