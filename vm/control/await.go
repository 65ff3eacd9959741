package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/agent"
	"github.com/vmrun/vmrun/vm/wire"
)

// Condition is something that a machine may be waited for.
type Condition struct {
	kind    string
	port    uint16
	pattern *regexp.Regexp
	text    string
}

// ParseCondition parses what --wait and --for take: started, ip, port=N, agent
// or log=REGEXP.
func ParseCondition(text string) (Condition, error) {
	kind, value, valued := strings.Cut(text, "=")
	c := Condition{kind: kind, text: text}
	switch {
	case !valued && (kind == "started" || kind == "ip" || kind == "agent"):
		return c, nil
	case valued && kind == "port":
		n, err := strconv.ParseUint(value, 10, 16)
		if err != nil || n == 0 {
			return c, fmt.Errorf("parse %q: want a port from 1 to 65535", text)
		}
		c.port = uint16(n)
		return c, nil
	case valued && kind == "log":
		pattern, err := regexp.Compile(value)
		if err != nil {
			return c, fmt.Errorf("parse %q: %w", text, err)
		}
		c.pattern = pattern
		return c, nil
	}
	return c, fmt.Errorf("parse %q: want started, ip, port=N, agent or log=REGEXP", text)
}

// Started tells the condition that a machine meets by being launched.
func (c Condition) Started() bool { return c.kind == "started" }

func (c Condition) String() string { return c.text }

// awaitArgs name a condition.
type awaitArgs struct {
	For      string `json:"for"`
	Diagnose bool   `json:"diagnose,omitempty"` // where it is not met
}

// Met says what met a condition, for people.
type Met struct {
	Text string `json:"text"`
}

// subject is what conditions are about.
type subject interface {
	Done() <-chan struct{}
	NICs() []vm.NICStatus
	AwaitAddress(ctx context.Context, nic int) (netip.Addr, error)
	Console() *vm.Console
	Agent() agent.Agent
}

// conditions are the ways to wait. Each returns when its condition is met, can't
// be met, or when ctx ends, and then says what was missing.
var conditions = map[string]func(context.Context, subject, Condition) (Met, error){
	"started": func(context.Context, subject, Condition) (Met, error) { return Met{"started"}, nil },
	"ip":      awaitAddresses,
	"port":    awaitPort,
	"log":     awaitLine,
	"agent":   awaitAgent,
}

// await waits for a condition, which can't be met any more once the machine has
// ended.
func await(ctx context.Context, m subject, a awaitArgs) (any, error) {
	c, err := ParseCondition(a.For)
	if err != nil {
		return nil, wire.Refuse(wire.KindUsage, "%v", err)
	}
	waiting, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-m.Done():
			cancel(errGone)
		case <-waiting.Done():
		}
	}()
	met, err := conditions[c.kind](waiting, m, c)
	switch {
	case err == nil:
		return met, nil
	case errors.Is(context.Cause(waiting), errGone):
		return nil, wire.Refuse(wire.KindUnmet, "it has ended, and before: %v", err)
	case ctx.Err() != nil:
		return nil, wire.Refuse(wire.KindDeadline, "%v", err)
	}
	return nil, wire.Refuse(wire.KindUnmet, "%v", err)
}

var errGone = errors.New("the virtual machine has ended")

func awaitAddresses(ctx context.Context, m subject, _ Condition) (Met, error) {
	nics := m.NICs()
	if len(nics) == 0 {
		return Met{}, errors.New("it has no NIC")
	}
	var all []string
	for i, nic := range nics {
		addr, err := m.AwaitAddress(ctx, i)
		switch {
		case ctx.Err() != nil && err != nil:
			return Met{}, fmt.Errorf("NIC %d on network %s was not seen to use an address", i, nic.Network)
		case err != nil:
			return Met{}, fmt.Errorf("NIC %d: %w", i, err)
		}
		all = append(all, addr.String())
	}
	return Met{strings.Join(all, " ")}, nil
}

const (
	portPatience = time.Second
	portInterval = 100 * time.Millisecond
)

// awaitPort tries to connect. A port that is not open yet can't be told from
// one that never will be, so this is asked again and again.
func awaitPort(ctx context.Context, m subject, c Condition) (Met, error) {
	last := errors.New("the guest's address is not known")
	if !anyAddressable(m) {
		return Met{}, errors.New("no NIC is on a network where the host reaches the guest: mode user carries forwarded ports alone, and takes them whether the guest listens or not")
	}
	dialer := net.Dialer{Timeout: portPatience}
	for {
		for _, nic := range m.NICs() {
			if !nic.Address().IsValid() {
				continue
			}
			target := netip.AddrPortFrom(nic.Address(), c.port).String()
			conn, err := dialer.DialContext(ctx, "tcp", target)
			if err == nil {
				conn.Close()
				return Met{target}, nil
			}
			if ctx.Err() == nil {
				last = err
			}
		}
		select {
		case <-time.After(portInterval):
		case <-ctx.Done():
			return Met{}, fmt.Errorf("port %d does not answer: %w", c.port, last)
		}
	}
}

func anyAddressable(m subject) bool {
	for _, nic := range m.NICs() {
		if nic.Link != "" {
			return true
		}
	}
	return false
}

const (
	maxLine = 64 << 10 // bytes of a console's line that are looked at
	// promptPatience is how long the console is silent after what is then taken
	// for a line without an end: a prompt.
	promptPatience = 300 * time.Millisecond
)

// awaitLine reads the console from the oldest output that is kept.
func awaitLine(ctx context.Context, m subject, c Condition) (Met, error) {
	view := m.Console()
	defer view.Close()
	reading, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(reading, func() { view.Close() })()
	l := lines{matches: func(line []byte) bool { return c.pattern.Match(line) }}
	if line, ok := l.find(chunks(reading, view)); ok {
		return Met{line}, nil
	}
	<-ctx.Done() // the console ends a little before the machine
	return Met{}, fmt.Errorf("no line of the console matches %q", c.pattern)
}

// chunks reads until the end, or until ctx ends.
func chunks(ctx context.Context, r io.Reader) <-chan []byte {
	ch := make(chan []byte)
	go func() {
		defer close(ch)
		for {
			buf := make([]byte, 4<<10)
			n, err := r.Read(buf)
			if n > 0 {
				select {
				case ch <- buf[:n]:
				case <-ctx.Done():
					return
				}
			}
			if err != nil {
				return
			}
		}
	}()
	return ch
}

// lines finds a line that matches.
type lines struct {
	matches func(line []byte) bool
	line    []byte // so far
}

// find returns the first line that matches. A line without an end is one when
// nothing comes any more, for the moment or for ever.
func (l *lines) find(chunks <-chan []byte) (string, bool) {
	for {
		quiet := time.After(promptPatience)
		if len(l.line) == 0 {
			quiet = nil
		}
		select {
		case chunk, more := <-chunks:
			if !more {
				return l.matched(l.line)
			}
			if line, ok := l.feed(chunk); ok {
				return line, true
			}
		case <-quiet:
			if line, ok := l.matched(l.line); ok {
				return line, true
			}
		}
	}
}

// feed looks at all lines that end in a chunk.
func (l *lines) feed(chunk []byte) (string, bool) {
	for {
		end, rest, ended := bytes.Cut(chunk, []byte("\n"))
		l.line = append(l.line, end[:min(len(end), maxLine-len(l.line))]...)
		if !ended {
			return "", false
		}
		if line, ok := l.matched(l.line); ok {
			return line, true
		}
		l.line, chunk = l.line[:0], rest
	}
}

func (l *lines) matched(line []byte) (string, bool) {
	line = bytes.TrimRight(line, "\r")
	return string(line), l.matches(line)
}

func awaitAgent(ctx context.Context, m subject, _ Condition) (Met, error) {
	if err := m.Agent().Ready(ctx); err != nil {
		return Met{}, fmt.Errorf("the guest agent does not answer: %w", err)
	}
	return Met{"the agent answers"}, nil
}

// diagnosisPatience is how long a look at a machine may take. The client waits
// that much longer (package wire).
const diagnosisPatience = time.Second

// await waits for a condition and says what may be wrong where it is not met.
func (s *Server) await(ctx context.Context, a awaitArgs) (any, error) {
	met, err := await(ctx, s.machine, a)
	unmet, ok := errors.AsType[*wire.Refusal](err)
	if !ok || unmet.Kind != wire.KindUnmet && unmet.Kind != wire.KindDeadline {
		return met, err
	}
	if why := vm.StoppedProcess("QEMU", s.machine.PID()); why != "" {
		unmet.Text += "; " + why
	}
	if !a.Diagnose {
		return met, unmet
	}
	looking, cancel := context.WithTimeout(context.WithoutCancel(ctx), diagnosisPatience)
	defer cancel()
	unmet.Data, _ = json.Marshal(s.machine.Diagnose(looking)) // of plain data
	return met, unmet
}

// AwaitDiagnosed is Await, with a diagnosis where the condition is not met; nil
// where there is none.
func AwaitDiagnosed(ctx context.Context, m vm.Machine, c Condition, timeout time.Duration) (*vm.Diagnosis, error) {
	err := askPatiently(ctx, m, wire.Request{Verb: "await", Args: awaitArgs{For: c.text, Diagnose: true}, Timeout: timeout}, nil)
	unmet, ok := errors.AsType[*wire.Refusal](err)
	if !ok || len(unmet.Data) == 0 {
		return nil, err
	}
	var d vm.Diagnosis
	if json.Unmarshal(unmet.Data, &d) != nil {
		return nil, err
	}
	return &d, err
}

// Await waits until a machine meets a condition, for a time, or for ever if that
// is 0. Where it is not met the error is a *wire.Refusal of KindUnmet, or of
// KindDeadline when the time is over, and says what was missing.
func Await(ctx context.Context, m vm.Machine, c Condition, timeout time.Duration) (met Met, err error) {
	err = askPatiently(ctx, m, wire.Request{Verb: "await", Args: awaitArgs{For: c.text}, Timeout: timeout}, &met)
	return met, err
}
