package vm

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"

	"github.com/vmrun/vmrun/qmp"
	"github.com/vmrun/vmrun/vm/agent"
)

// Instance is a running virtual machine, or one that has ended and is not yet
// closed. Its methods may be called from several goroutines.
type Instance struct {
	plan      *Plan
	process   *process
	console   *console
	agent     agent.Agent
	ownAgent  *agent.VMRun // is agent, or a part of it
	qemuLog   *logFile
	record    *record
	control   *net.UnixListener
	dir       string
	log       *slog.Logger
	sightings *sightings
	hearings  []hearing // by NIC
	close     func() error
	display   *display // nil: no screen
	host      Host
	disks     []writtenDisk
	join      attachFunc  // nil: attach
	inspect   inspectFunc // nil: netsetup.Inspect
	watchLink watchFunc
	hot       hotplug
	dumps     atomic.Int32 // of frames, that were begun

	resets atomic.Int64 // how often it was reset by us

	saving    sync.Mutex // held while a snapshot is made
	mu        sync.Mutex
	ending    Ending
	end       *End // nil: as ending says
	ladder    stage
	leaveStep context.CancelFunc // ends the wait at the present step of the ladder

	ended chan struct{} // closed when ending is final
}

// newInstance takes over what the launch has made, and watches the machine.
func newInstance(l *launch) *Instance {
	i := &Instance{
		plan: l.plan, process: l.process, qemuLog: l.qemuLog,
		record: l.record, control: l.control, dir: l.dir, log: l.host.log(),
		sightings: newSightings(len(l.plan.NICs)), hearings: make([]hearing, len(l.plan.NICs)),
		console: newConsole(l.process.console, l.consoleLog),
		close:   sync.OnceValue(l.undo.run),
		host:    l.host, disks: l.written, join: l.options.attach, inspect: l.options.inspect, watchLink: l.options.watch,
		ending: Ending{micro: l.plan.Micro != nil},
		ended:  make(chan struct{}),
	}
	i.ownAgent, i.agent = newAgent(l.process.ports)
	if i.watchLink == nil {
		i.watchLink = watchTAP
	}
	l.connections.push(i.leaveHot)
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

// newAgent speaks with the guest by its ports, which stay the process's.
func newAgent(ports map[string]*net.UnixConn) (own *agent.VMRun, either agent.Agent) {
	own = agent.NewVMRun(ports[fdAgent])
	if qga := ports[fdQGA]; qga != nil {
		return own, agent.Either{VMRun: own, QGA: agent.NewQGA(qga)}
	}
	return own, own
}

// watch reads all that QEMU and the guest tell until QEMU is gone, and then
// makes up the ending. At the guest's end, which is a little earlier, it calls
// guestGone.
func (i *Instance) watch(events <-chan qmp.Event, guestGone func()) (done <-chan struct{}) {
	var all sync.WaitGroup
	var reason string
	all.Go(i.console.drain)
	all.Go(func() { reason = i.follow(events, guestGone) })
	if exit := i.process.ports[fdExit]; exit != nil {
		all.Go(func() { readExit(exit, i.guestExited) })
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
		i.ending.Log = i.qemuLog.tail(0)
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
func (i *Instance) Console() *Console { return &Console{console: i.console, agent: i.ownAgent} }

// Agent is the way into the guest. The micro guest has one; others do if
// qemu-guest-agent or vmrun's own agent runs in them.
func (i *Instance) Agent() agent.Agent { return i.agent }

// QMP is the connection with QEMU. It is closed with the instance.
func (i *Instance) QMP() *qmp.Client { return i.process.client }

// ConsoleTail is Console from the last so many lines of the output so far.
func (i *Instance) ConsoleTail(lines int) *Console {
	v := i.Console()
	v.backTo(lines)
	return v
}

// NICs are the network cards in the plan's order.
func (i *Instance) NICs() []NICStatus { return i.record.get().NICs }

// Plan is what the machine was launched from. It must not be changed.
func (i *Instance) Plan() *Plan { return i.plan }

// State is what the machine's state.json says at present.
func (i *Instance) State() State { return i.record.get() }

// Dir is the machine's folder, which has its logs.
func (i *Instance) Dir() string { return i.dir }

// ControlSocket is where others ask for this machine. Until somebody accepts
// they wait. It is closed with the instance.
func (i *Instance) ControlSocket() *net.UnixListener { return i.control }

// PID is QEMU's process id.
func (i *Instance) PID() int { return i.process.cmd.Process.Pid }

// Accel is what the guest's code is executed by: kvm or tcg.
func (i *Instance) Accel() string { return i.process.accel }
