package vm

import (
	"context"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmrun/vmrun/netsetup"
)

// symptomLines and symptomBytes bound what of the console is a symptom.
const (
	symptomLines = 100
	symptomBytes = 32 << 10
)

// inspectFunc is netsetup.Inspect.
type inspectFunc func(ctx context.Context, h netsetup.Host, name, dir string) (netsetup.Report, error)

// Diagnosis is what is known of a machine and what that most likely means.
type Diagnosis struct {
	Likely []string `json:"likely"` // the likeliest cause first
	Symptoms
}

// Diagnose looks at the machine from all sides, whether it runs or has ended and
// is not yet closed. What is not known when ctx ends is left out.
func (i *Instance) Diagnose(ctx context.Context) Diagnosis {
	s := i.symptoms(ctx)
	return Diagnosis{Likely: append([]string{}, s.Likely()...), Symptoms: s}
}

// DiagnoseLog is what the console's log of a machine tells that is gone, but for
// its logs.
func DiagnoseLog(h Host, name string) Diagnosis {
	m := Machine{Dir: filepath.Join(vmsFolder(h.Dirs.Runtime), name)}
	s := Symptoms{Console: []string{}}
	if log, err := m.OpenLog(ConsoleLog, time.Time{}); err == nil {
		defer log.Close()
		if text, err := io.ReadAll(log); err == nil {
			s.Console = plainLines(text[max(0, len(text)-symptomBytes):], symptomLines)
		}
	}
	return Diagnosis{Likely: append([]string{}, s.ofConsole()...), Symptoms: s}
}

func (i *Instance) symptoms(ctx context.Context) Symptoms {
	s := Symptoms{Console: plainLines(i.console.tail(symptomBytes), symptomLines), Screen: i.display != nil}
	var all sync.WaitGroup
	if i.hasEnded() {
		i.mu.Lock()
		ending := i.ending
		i.mu.Unlock()
		s.Ending = &ending
	} else {
		all.Go(func() {
			// Without an answer it stays empty.
			answer, _ := i.status(ctx)
			s.Status = answer.Status
		})
	}
	all.Go(func() { s.NICs = i.nicSymptoms(ctx) })
	all.Wait()
	return s
}

// nicSymptoms asks each network about the machine's cards.
func (i *Instance) nicSymptoms(ctx context.Context) []NICSymptoms {
	inspect := i.inspect
	if inspect == nil {
		inspect = netsetup.Inspect
	}
	known := map[string]netsetup.Report{}
	var all []NICSymptoms
	for n, nic := range i.plan.NICs {
		seen, _ := i.sightings.get(n)
		s := NICSymptoms{Network: nic.Network, Mode: nic.Mode, Seen: seen.addr.IsValid(),
			Heard: int(i.hearings[n].asked.Load()), Delivered: int(i.hearings[n].delivered.Load())}
		if nic.Spec != nil {
			id := nic.Spec.ID()
			report, asked := known[id]
			if !asked {
				// Of a network that does not answer nothing is known.
				report, _ = inspect(ctx, i.host.NetworkHost(), id, "")
				known[id] = report
			}
			s.add(report, *nic.Port)
		}
		all = append(all, s)
	}
	return all
}

// add notes what a network tells of a card.
func (n *NICSymptoms) add(r netsetup.Report, p netsetup.PortSpec) {
	at := slices.IndexFunc(r.Members, func(m netsetup.Member) bool { return m.VM == p.VM && m.NIC == p.NIC })
	if at < 0 {
		return
	}
	m := r.Members[at]
	n.Counted, n.IP, n.Leased, n.Guarded = m.Counted, m.IP, m.Leased, m.Guarded
	n.Sent, n.Received = m.Sent.Packets, m.Received.Packets
	if r.Refused != nil {
		n.Rejected, n.Shut = r.Refused.FromGuests, r.Refused.ToGuests
	}
	if m.DHCP != nil {
		n.Served, n.Asked, n.Answered, n.Refused = true, m.DHCP.Asked, m.DHCP.Answered, m.DHCP.Refused
	}
}

// escapes are what moves a terminal's cursor and sets its colours (ECMA-48,
// section 5.4), and other control characters.
var escapes = pattern(`\x1b\[[0-?]*[ -/]*[@-~]|\x1b[()][0-9A-Z]|\x1b[=>78cDEM]|[\x00-\x08\x0b-\x1f\x7f]`)

// plainLines are the last lines of a console's output that say something, without
// what would change the terminal of whoever reads them.
func plainLines(output []byte, most int) []string {
	lines := []string{}
	for line := range strings.Lines(strings.ToValidUTF8(string(output), "")) {
		line = strings.TrimRight(escapes().ReplaceAllString(line, ""), " \t\n")
		if line != "" {
			lines = append(lines, line)
		}
	}
	return lines[max(0, len(lines)-most):]
}
