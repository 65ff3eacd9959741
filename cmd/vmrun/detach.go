package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/control"
)

// job is what a supervisor in the background is told to do. It is checked and
// planned already, and nothing of it is looked up again.
type job struct {
	Program string        `json:"program"` // the vmrun that planned it
	Plan    *vm.Plan      `json:"plan"`
	Host    vm.Host       `json:"host"`
	Grace   time.Duration `json:"grace_ns"`
	Timeout time.Duration `json:"timeout_ns"`
	Remove  bool          `json:"remove"`
	Quiet   bool          `json:"quiet"`
	JSON    bool          `json:"json"`   // messages are JSON
	Report  string        `json:"report"` // absolute path, or ""; a folder ends in a slash
	File    string        `json:"file"`   // as the user named it
	Notify  notifySocket  `json:"notify,omitempty"`
}

// news is what a supervisor says until its VM runs, or is known not to.
type news struct {
	PID    int      `json:"pid,omitempty"`  // the supervisor's, first
	Line   string   `json:"line,omitempty"` // for stderr
	Ready  bool     `json:"ready,omitempty"`
	Failed *failure `json:"failed,omitempty"`
}

// failure is an outcome on its way to another process.
type failure struct {
	Code   int    `json:"code"`
	By     string `json:"by"`
	Reason string `json:"reason"`
	Told   string `json:"told"`  // for stderr, with hints
	Taken  bool   `json:"taken"` // for another machine of the name
}

// supervisorError is what a supervisor said of its failure, and how.
type supervisorError struct{ failure }

func (e supervisorError) Error() string { return strings.TrimSpace(e.Told) }

// runDetached starts a supervisor for the VM of a profile, and returns when the
// VM is as ready as --wait asks.
func (r *runner) runDetached(ctx context.Context, file string) error {
	return r.detached(ctx, func() (end outcome, host vm.Host) {
		end = r.tryNames(ctx, file, func(plan *vm.Plan, h vm.Host) outcome {
			host = h
			return r.startDetached(ctx, file, plan, h)
		})
		return end, host
	})
}

// detached returns when the VM that start has started is as ready as --wait asks.
func (r *runner) detached(ctx context.Context, start func() (outcome, vm.Host)) error {
	signals, stop := listen()
	defer stop()
	r.signals = signals
	defer func() { r.supervisor.Close() }() // or there is none
	end, host := start()
	if told, ok := errors.AsType[supervisorError](end.cause); ok {
		fmt.Fprint(r.stderr, told.Told)
		return exitError{code: end.code}
	}
	if end.err() != nil {
		return end.err()
	}
	if err := r.awaitReady(ctx, host, end.vm); err != nil {
		return err
	}
	if err := r.notifyReady(ctx, host, end.vm); err != nil {
		return errors.Join(err, r.endDetached(host, end.vm))
	}
	_, err := fmt.Println(end.vm)
	return err
}

// startDetached starts a supervisor and waits until its VM runs.
func (r *runner) startDetached(ctx context.Context, file string, plan *vm.Plan, host vm.Host) outcome {
	if err := plan.Check(ctx, host); err != nil {
		return launchFailure(err)
	}
	j := job{Program: buildVersion().String(), Plan: plan, Host: host, Grace: r.options.grace, Timeout: r.options.timeout,
		Remove: r.options.remove, Quiet: r.options.quiet, JSON: r.style.json, File: file, Notify: r.notify}
	if r.options.report != "" {
		var err error
		if j.Report, err = filepath.Abs(r.options.report); err != nil {
			return launchFailure(err)
		}
		if isReportFolder(r.options.report) {
			j.Report += "/"
		}
	}
	s, err := startSupervisor(j)
	if err != nil {
		return launchFailure(err)
	}
	defer s.conn.Close()
	end, signal, finished := untilSignal(ctx, r.signals, func(ctx context.Context) outcome {
		// The supervisor gives its launch up when it learns that nobody waits.
		defer context.AfterFunc(ctx, func() { s.conn.CloseWrite() })()
		defer r.progress("launching " + plan.Name)()
		return s.await(r.stderr)
	})
	if !finished {
		return launchFailure(errors.Join(signalError{signal}, teardownError{errors.New("cut short by another signal")}))
	}
	r.supervisor.Close() // of a name that was taken
	r.supervisor = s.process
	if end.err() != nil {
		r.awaitSupervisor()
	}
	switch {
	case signal != 0 && end.err() == nil:
		return r.interrupted(host, plan.Name, signal)
	case signal != 0:
		return launchFailure(signalError{signal})
	}
	return end
}

// supervisorPatience bounds the wait for the end of a supervisor that has said its
// last. That takes milliseconds, and seconds where a client takes nothing.
const supervisorPatience = 10 * time.Second

// awaitSupervisor waits for the end of the process of a supervisor without a VM, so
// that nobody finds it after this one's end, such as systemd, which would kill it. A
// signal ends the wait. Who reads the report from a pipe may come after us.
func (r *runner) awaitSupervisor() {
	if r.supervisor == nil || isStream(r.options.report) {
		return
	}
	err, signal, _ := untilSignal(context.Background(), r.signals, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, supervisorPatience)
		defer cancel()
		return vm.AwaitProcess(ctx, r.supervisor)
	})
	if err != nil && signal == 0 {
		r.log.Warn("wait for the supervisor's end", "cause", err)
	}
}

// interrupted ends a VM that a signal said is not wanted any more.
func (r *runner) interrupted(host vm.Host, name string, signal unix.Signal) outcome {
	end := launchFailure(signalError{signal})
	if !r.options.keep {
		end.cause = errors.Join(end.cause, r.endDetached(host, name))
	}
	return end
}

// endDetached ends a VM in order, with its supervisor. A signal skips ahead.
func (r *runner) endDetached(host vm.Host, name string) error {
	defer r.progress("ending " + name)()
	m, err := vm.Open(context.Background(), host, name)
	_, gone := errors.AsType[*vm.UnknownError](err)
	if err == nil {
		err = r.stopDetached(m)
	}
	if err != nil && !gone {
		return err
	}
	r.awaitSupervisor()
	return nil
}

// stopDetached ends a VM in order. A signal skips ahead.
func (r *runner) stopDetached(m vm.Machine) error {
	done := make(chan error, 2)
	stop := func() {
		_, err := control.Stop(context.Background(), m, r.options.grace)
		done <- err
	}
	go stop()
	for {
		select {
		case err := <-done:
			if err != nil && !control.HasEnded(err) {
				return teardownError{fmt.Errorf("end %s: %w", m.Name, err)}
			}
			return nil
		case <-r.signals:
			go stop()
		}
	}
}

// awaitReady waits for the condition of --wait.
func (r *runner) awaitReady(ctx context.Context, host vm.Host, name string) error {
	condition, err := control.ParseCondition(r.options.wait)
	if err != nil || condition.Started() {
		return err
	}
	m, err := vm.Open(ctx, host, name)
	if _, gone := errors.AsType[*vm.UnknownError](err); gone {
		return exitError{exitTimeout, r.explainGone(host, name, condition)}
	}
	if err != nil {
		return err
	}
	var diagnosis *vm.Diagnosis
	err, signal, finished := untilSignal(ctx, r.signals, func(ctx context.Context) (err error) {
		defer r.progress(name + ": waiting for " + condition.String())()
		diagnosis, err = control.AwaitDiagnosed(ctx, m, condition, r.options.waitTimeout)
		return err
	})
	switch {
	case signal != 0 || !finished:
		end := r.interrupted(host, name, signal)
		return end.err()
	case err == nil:
		return nil
	}
	if control.HasEnded(err) {
		return exitError{exitTimeout, r.explainGone(host, name, condition)}
	}
	unmet := r.explainUnmet(host, m, diagnosis, fmt.Errorf("wait for %s: %w", condition, err))
	hasEnded := diagnosis != nil && diagnosis.Ending != nil
	if r.options.keep && !hasEnded {
		return exitError{exitTimeout, unmet}
	}
	// One that has ended by itself is only waited for: its report comes before.
	return exitError{exitTimeout, errors.Join(unmet, r.endDetached(host, name))}
}

// explainGone says of a VM that ended before it could be asked what its console's
// log tells. The rest is its supervisor's to tell.
func (r *runner) explainGone(host vm.Host, name string, condition control.Condition) error {
	r.awaitSupervisor()
	d := vm.DiagnoseLog(host, name)
	r.evidence = &evidence{host: host, plan: &vm.Plan{Name: name}, diagnosis: &d}
	r.tellFailure(name, nil)
	return fmt.Errorf("wait for %s: it has ended, and %s says how", condition, filepath.Join(r.evidence.dir(), supervisorLog))
}

// explainUnmet says why a VM is not ready, and returns what is to be told of it.
// Of one that has ended by itself its supervisor writes the rest.
func (r *runner) explainUnmet(host vm.Host, m vm.Machine, d *vm.Diagnosis, unmet error) error {
	if d == nil || m.Plan == nil {
		return unmet
	}
	r.evidence = &evidence{host: host, plan: m.Plan, diagnosis: d}
	if d.Ending == nil {
		r.evidence.lookFromOutside(m, d)
	}
	r.tellFailure(m.Name, unmet)
	if d.Ending == nil && isReportFolder(r.options.report) {
		if err := r.evidence.write(r.options.report); err != nil {
			return errors.Join(unmet, fmt.Errorf("write report: %w", err))
		}
	}
	return unmet
}

// notifyReady tells systemd that the VM is ready and that its supervisor is the
// service's main process.
func (r *runner) notifyReady(ctx context.Context, host vm.Host, name string) error {
	if r.notify == "" {
		return nil
	}
	m, err := vm.Open(ctx, host, name)
	if err != nil {
		return err
	}
	return r.notify.tell(notifyMainPID(m.Supervisor), notifyReady)
}

// supervisor is one that was started, until its VM runs.
type supervisor struct {
	conn    *net.UnixConn
	log     string   // path
	process *os.File // pidfd; nil: it has not said which, or has ended
}

const (
	supervisorName = "supervisor" // of the hidden command
	supervisorLog  = "supervisor.log"
)

// startSupervisor starts the process that the VM will belong to, in a session of
// its own, and tells it its job.
func startSupervisor(j job) (*supervisor, error) {
	dir, err := vm.MakeFolder(j.Host, j.Plan.Name)
	if err != nil {
		return nil, err
	}
	ours, theirs, err := connection()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	s := &supervisor{conn: ours, log: filepath.Join(dir, supervisorLog)}
	if err := s.start(j, theirs); err != nil {
		return nil, errors.Join(fmt.Errorf("start supervisor: %w", err), ours.Close())
	}
	if err := json.NewEncoder(ours).Encode(j); err != nil && !errors.Is(err, unix.EPIPE) {
		return nil, errors.Join(fmt.Errorf("start supervisor: %w", err), ours.Close())
	}
	return s, nil
}

func (s *supervisor) start(j job, theirs *os.File) error {
	log, err := os.OpenFile(s.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	argv := detectScope().command(j.Plan.Name, j.Host.Executable, supervisorName, j.Plan.Name)
	if j.Notify != "" {
		// The VM is what the service is, and systemd waits for a main process that is
		// its own child; any other it kills without a wait (service.c, main_pid_alien).
		argv = []string{j.Host.Executable, supervisorName, "--" + orphanFlag, j.Host.Executable, j.Plan.Name}
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = "/"
	cmd.Env = supervisorEnv(os.Environ())
	cmd.Stderr = log
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if j.Notify != "" {
		return cmd.Run()
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	go cmd.Wait() // no zombie while this process lives; how it ended is in its news and its log
	return nil
}

// supervisorEnv is all that a supervisor has of an environment: what systemd-run
// and Go's runtime look at.
func supervisorEnv(env []string) []string {
	kept := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	for _, e := range env {
		name, _, _ := strings.Cut(e, "=")
		switch name {
		case "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "GORACE", "GOTRACEBACK", "GOCOVERDIR":
			kept = append(kept, e)
		}
	}
	return kept
}

// connection is a pair of connected sockets: one of ours, one for a child.
func connection() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	near, theirs := os.NewFile(uintptr(fds[0]), "supervisor"), os.NewFile(uintptr(fds[1]), "supervisor")
	defer near.Close()
	conn, err := net.FileConn(near)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("make socket pair: %w", err), theirs.Close())
	}
	return conn.(*net.UnixConn), theirs, nil
}

// await passes on what the supervisor says, until its VM runs or won't.
func (s *supervisor) await(stderr io.Writer) outcome {
	in := json.NewDecoder(s.conn)
	for {
		var n news
		err := in.Decode(&n)
		switch {
		case err != nil:
			return launchFailure(fmt.Errorf("the supervisor ended before it said how (%w); its log is %s", err, s.log))
		case n.Failed != nil:
			f := n.Failed
			return outcome{code: f.Code, by: f.By, reason: f.Reason, cause: supervisorError{*f}}
		case n.Ready:
			return outcome{}
		case n.PID != 0:
			s.process, _ = vm.OpenProcess(n.PID) // else it has ended
			continue
		}
		fmt.Fprint(stderr, n.Line)
	}
}
