package netsetup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// holderCaps is what a holder needs: to start a keeper with what that needs and
// no more, and to let a group reach its socket.
const holderCaps = keptCaps | 1<<unix.CAP_CHOWN | 1<<unix.CAP_SETPCAP

// holderOrder is what a holder process reads from its standard input.
type holderOrder struct {
	Net   Spec   `json:"net"`
	Group *Group `json:"group,omitempty"`
}

// holderReport is what it writes to descriptor 3 once it holds, or can't.
type holderReport struct {
	Already bool     `json:"already,omitempty"`
	Refused *refusal `json:"refused,omitempty"`
}

// StartHolder starts a process that holds a network until Down, and returns when
// it does. ErrHeld and *ConflictError are as for StartHold.
func StartHolder(ctx context.Context, h Host, spec Spec, group *Group) error {
	if err := startHolder(ctx, h, spec, group); err != nil {
		return fmt.Errorf("hold network %s: %w", spec.Name, err)
	}
	return nil
}

func startHolder(ctx context.Context, h Host, spec Spec, group *Group) error {
	dir := filepath.Join(netsFolder(h.Runtime), spec.folder())
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	if err := clearElsewhere(ctx, h, dir); err != nil {
		return err // a holder may not look at all processes
	}
	order, err := json.Marshal(holderOrder{spec, group})
	if err != nil {
		return fmt.Errorf("encode network: %w", err)
	}
	report, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer report.Close()
	cmd, err := execHolder(h, dir, order, theirs)
	theirs.Close()
	if err != nil {
		return err
	}
	go cmd.Wait() // no zombie while this process lives
	stop := context.AfterFunc(ctx, func() { cmd.Process.Kill(); report.Close() })
	defer stop()
	text, err := io.ReadAll(report)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var r holderReport
	if err != nil || json.Unmarshal(text, &r) != nil {
		return fmt.Errorf("the holder ended: %s (log %s)", lastLine(dir), filepath.Join(dir, "keeper.log"))
	}
	switch {
	case r.Already:
		return ErrHeld
	case r.Refused != nil:
		return r.Refused.err()
	}
	return nil
}

// execHolder runs the holder as startKeeper runs a keeper: it outlives whoever
// wanted it. What it reads is in memory when it starts.
func execHolder(h Host, dir string, order []byte, report *os.File) (*exec.Cmd, error) {
	log, err := openLog(filepath.Join(dir, "keeper.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	in, ours, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	if _, err := ours.Write(order); err != nil { // far less than a pipe holds
		ours.Close()
		return nil, err
	}
	if err := ours.Close(); err != nil {
		return nil, err
	}
	if err := closeOnExec(); err != nil {
		return nil, err
	}
	argv := scoped(scopeRunner(), "vmrun holder of network "+filepath.Base(dir), daemonCommand(h, "holder"))
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = "/"
	cmd.Env = []string{keeperPath}
	cmd.Stdin, cmd.Stderr = in, log
	cmd.ExtraFiles = []*os.File{report}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := startWith(cmd, holderCaps); err != nil {
		return nil, fmt.Errorf("start holder: %w", err)
	}
	return cmd, nil
}

// closeOnExec keeps from children whatever this process was started with: a
// pipe that they held would never end.
func closeOnExec() error {
	err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	if err != nil && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EINVAL) { // Linux 5.11
		return fmt.Errorf("close inherited files: %w", err)
	}
	return nil
}

// KeepHold is the body of the holder process. It is called once, by the hidden
// command `vmrun holder` that StartHolder runs.
func KeepHold(ctx context.Context, h Host) error {
	unix.Umask(0o077)
	unix.CloseOnExec(3)
	report := os.NewFile(3, "report")
	defer report.Close()
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(signals)
	var order holderOrder
	if err := json.NewDecoder(os.Stdin).Decode(&order); err != nil {
		return fmt.Errorf("read what to hold (only vmrun itself starts a holder): %w", err)
	}
	hold, err := StartHold(ctx, h, order.Net, order.Group)
	r := holderReport{Already: errors.Is(err, ErrHeld)}
	if err != nil && !r.Already {
		if cause := errors.Unwrap(err); cause != nil {
			err = cause // who asked for the hold says what it was
		}
		r.Refused = newRefusal(err)
	}
	if err := json.NewEncoder(report).Encode(r); err != nil {
		return fmt.Errorf("report: %w", err) // nobody wants it any more
	}
	report.Close()
	if err != nil {
		return err
	}
	for {
		select {
		case s := <-signals:
			h.log().Warn("told to end", "signal", s.String())
			if s == syscall.SIGTERM {
				hold.Release()
			}
		case <-hold.Done():
			return hold.Wait()
		}
	}
}
