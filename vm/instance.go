package vm

import (
	"context"
	"os"
	"sync"

	"github.com/vmrun/vmrun/qmp"
)

// Instance is a running virtual machine, or one that has ended and is not yet
// closed. Its methods may be called from several goroutines.
type Instance struct {
	plan    *Plan
	nics    []NICStatus
	process *process
	console *console
	qemuLog *os.File
	close   func() error

	mu        sync.Mutex
	ending    Ending
	ladder    stage
	leaveStep context.CancelFunc // ends the wait at the present step of the ladder

	ended chan struct{} // closed when ending is final
}

// newInstance takes over what the launch has made, and watches the machine.
func newInstance(l *launch) *Instance {
	i := &Instance{
		plan: l.plan, nics: l.status(), process: l.process, qemuLog: l.qemuLog,
		console: newConsole(l.process.console, l.consoleLog, l.host.log()),
		close:   sync.OnceValue(l.undo.run),
		ending:  Ending{micro: l.plan.Micro != nil},
		ended:   make(chan struct{}),
	}
	events, _ := l.process.client.Subscribe()
	watched := i.watch(events, l.startLeaving)
	// The watchers end with QEMU's ends of the sockets, so this comes before
	// our ends are closed.
	l.undo.push(func() error {
		err := l.process.kill()
		<-watched
		return err
	})
	return i
}

// watch reads all that QEMU and the guest tell until QEMU is gone, and then
// makes up the ending. At the guest's end, which is a little earlier, it calls
// guestGone.
func (i *Instance) watch(events <-chan qmp.Event, guestGone func()) (done <-chan struct{}) {
	var all sync.WaitGroup
	var reason string
	all.Go(i.console.drain)
	all.Go(func() { reason = shutdownReason(events, guestGone) })
	if i.process.exit != nil {
		all.Go(func() { readExit(i.process.exit, i.guestExited) })
	}
	go func() {
		<-i.process.ended
		all.Wait()
		i.conclude(reason)
		close(i.ended)
	}()
	return i.ended
}

func (i *Instance) guestExited(code int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.ending.GuestExit = &code
}

func (i *Instance) conclude(reason string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.endStep()
	i.ending.Reason = reason
	if reason == "" && i.ladder == stageKill {
		i.ending.Reason = Killed
	}
	i.ending.silent = i.console.silent()
	i.ending.QEMU = i.process.cmd.ProcessState.String()
	if i.ending.Reason == "" {
		i.ending.Log = tail(i.qemuLog, 0)
	}
}

// Wait waits for the machine's end and tells what it was. It may be called any
// number of times. An error is the context's.
func (i *Instance) Wait(ctx context.Context) (Ending, error) {
	select {
	case <-i.ended:
		i.mu.Lock()
		defer i.mu.Unlock()
		return i.ending, nil
	case <-ctx.Done():
		return Ending{}, context.Cause(ctx)
	}
}

// Done is closed when the machine has ended.
func (i *Instance) Done() <-chan struct{} { return i.ended }

// Close ends the machine at once if it still runs, and undoes all that its
// launch did, past failures, which are in the error. Further calls return the
// same.
func (i *Instance) Close() error { return i.close() }

// Console opens a view of the guest's serial port, which begins with the oldest
// output that is kept. The caller closes it.
func (i *Instance) Console() *Console { return &Console{console: i.console} }

// QMP is the connection with QEMU. It is closed with the instance.
func (i *Instance) QMP() *qmp.Client { return i.process.client }

// NICs are the network cards in the plan's order.
func (i *Instance) NICs() []NICStatus { return i.nics }

// PID is QEMU's process id.
func (i *Instance) PID() int { return i.process.cmd.Process.Pid }

// Accel is what the guest's code is executed by: kvm or tcg.
func (i *Instance) Accel() string { return i.process.accel }
