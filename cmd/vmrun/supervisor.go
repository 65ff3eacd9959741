package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/netsetup"
)

// newSupervisorCommand is the process behind a VM in the background. vmrun starts
// it itself, with a connection as descriptor 3; stderr is the VM's
// supervisor.log.
func newSupervisorCommand() *cobra.Command {
	var orphan string
	c := &cobra.Command{
		Use:    supervisorName + " NAME",
		Short:  "Own a VM in the background (vmrun starts this itself)",
		Hidden: true,
		Args:   usageArgs(cobra.ExactArgs(1)), // for process lists alone
		RunE: func(c *cobra.Command, args []string) error {
			starter := os.NewFile(firstInherited, "starter")
			if orphan != "" {
				return startOrphan(orphan, args[0], starter, os.Stderr)
			}
			return supervise(c.Context(), starter, os.Stderr)
		},
	}
	c.Flags().StringVar(&orphan, orphanFlag, "", "start this vmrun as the supervisor, a child of nobody's, and end")
	return c
}

// orphanFlag names the vmrun to start, as a child of process 1's, or of what
// stands in for it, rather than its starter's.
const orphanFlag = "orphan"

// startOrphan starts the supervisor, whose parent is gone when this process has
// ended.
func startOrphan(executable, name string, starter, log *os.File) error {
	cmd := exec.Command(executable, supervisorName, name)
	cmd.Stderr = log
	cmd.ExtraFiles = []*os.File{starter}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start supervisor: %w", err)
	}
	return nil
}

// supervise does the job that comes by the starter's connection.
func supervise(ctx context.Context, starter, log *os.File) error {
	unix.Umask(0o077)
	debug.SetGCPercent(50) // one of many small processes
	conn, err := net.FileConn(starter)
	if err != nil {
		return fmt.Errorf("take over connection (only vmrun itself starts a supervisor): %w", err)
	}
	starter.Close()
	s := &starterConn{conn: conn, log: &cappedLog{file: log}}
	s.say(news{PID: os.Getpid()})
	in := json.NewDecoder(conn)
	in.DisallowUnknownFields()
	var j job
	if err := in.Decode(&j); err != nil {
		return s.failed(style{}, launchFailure(fmt.Errorf("read job: %w", err)))
	}
	if own := buildVersion().String(); j.Program != own {
		return s.failed(style{}, launchFailure(fmt.Errorf("start supervisor: %s is %s by now, and this is %s", j.Host.Executable, own, j.Program)))
	}
	return s.run(ctx, j)
}

// run runs the VM. Until it runs, the starter's end is the launch's.
func (s *starterConn) run(ctx context.Context, j job) error {
	signals, stop := listen()
	defer stop()
	launching, abandon := context.WithCancelCause(ctx)
	defer abandon(nil)
	go func() {
		io.Copy(io.Discard, s.conn)
		if !s.isOver() {
			abandon(signalError{unix.SIGINT})
		}
	}()
	r := &runner{
		options: runOptions{grace: j.Grace, timeout: j.Timeout, remove: j.Remove, report: j.Report, quiet: j.Quiet},
		style:   style{json: j.JSON}, stderr: &lineWriter{w: s}, log: style{json: j.JSON}.messages(s, j.Quiet), signals: signals,
		sweepNetworks: netsetup.Sweep, notify: j.Notify, ready: s.ready, reporting: reporting{file: j.File, started: time.Now()},
	}
	j.Host.Log = r.log
	end := r.runPlan(launching, j.Plan, j.Host)
	end.vm = j.Plan.Name
	if !s.isOver() {
		r.reportFirst(end)
		s.failed(r.style, end)
	}
	return r.report(end)
}

// starterConn is the connection with the process that started this one. What is
// written to it goes there until the VM runs, and to the log, always.
type starterConn struct {
	conn net.Conn
	log  *cappedLog

	mu   sync.Mutex
	over bool // nothing more is said
}

// Write passes a message on.
func (s *starterConn) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log.line(p)
	if !s.over {
		s.say(news{Line: string(p)})
	}
	return len(p), nil
}

// say says something, to a starter that may be gone.
func (s *starterConn) say(n news) { json.NewEncoder(s.conn).Encode(n) }

func (s *starterConn) isOver() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.over
}

func (s *starterConn) finish(n news) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	s.say(n)
	s.conn.Close()
}

func (s *starterConn) ready() { s.finish(news{Ready: true}) }

// failed tells the starter why there is no VM. It returns the outcome as a
// command does.
func (s *starterConn) failed(style style, end outcome) error {
	var told strings.Builder
	style.printError(&told, end.err())
	s.finish(news{Failed: &failure{Code: end.code, By: end.by, Reason: end.reason, Told: told.String(), Taken: isTaken(end.cause)}})
	return end.err()
}

// maxSupervisorLog is from when on a supervisor's log is begun anew, in bytes.
const maxSupervisorLog = 256 << 10

// cappedLog is a log that never grows without bound.
type cappedLog struct{ file *os.File }

// line writes a message with the time before it.
func (l *cappedLog) line(p []byte) {
	if fi, err := l.file.Stat(); err == nil && fi.Mode().IsRegular() && fi.Size() > maxSupervisorLog {
		l.file.Truncate(0)
	}
	fmt.Fprintf(l.file, "%s %s", time.Now().UTC().Format(time.RFC3339), p) // a full disk is no reason to end
}
