package control

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/agent"
	"github.com/vmrun/vmrun/vm/wire"
)

func TestParseCondition(t *testing.T) {
	for _, good := range []string{"started", "ip", "agent", "port=1", "port=65535", "log=a=b", "log="} {
		if c, err := ParseCondition(good); err != nil || c.String() != good || conditions[c.kind] == nil {
			t.Errorf("%s: %v, %v", good, c, err)
		}
	}
	for _, bad := range []string{"", "ip=1", "port", "port=", "port=0", "port=65536", "port=http", "log", "log=(", "started=now", "=", "IP"} {
		if c, err := ParseCondition(bad); err == nil {
			t.Errorf("%q is taken for %v", bad, c)
		}
	}
}

// A line is whole, or nothing comes after what there is of it.
func TestLines(t *testing.T) {
	for _, test := range []struct {
		chunks []string
		end    bool
		want   string
		ok     bool
	}{
		{[]string{"one\r\ntw", "o\r\n"}, true, "two", true},
		{[]string{"login: "}, false, "login: ", true}, // a prompt
		{[]string{"server\nserv", "ing"}, true, "", false},
		{[]string{"a", "b", "c"}, true, "abc", true},
		{[]string{strings.Repeat("x", 3*maxLine) + "two\n"}, true, "", false},
		{nil, true, "", false},
	} {
		ch := make(chan []byte, len(test.chunks))
		for _, c := range test.chunks {
			ch <- []byte(c)
		}
		if test.end {
			close(ch)
		}
		l := lines{matches: func(line []byte) bool {
			switch string(line) {
			case "two", "login: ", "abc", "serv":
				return true
			}
			return strings.HasSuffix(string(line), "xtwo")
		}}
		if got, ok := l.find(ch); ok != test.ok || ok && got != test.want {
			t.Errorf("%.40q: %q, %v", test.chunks, got, ok)
		}
	}
}

// fakeSubject is a machine with some NICs.
type fakeSubject struct {
	nics []vm.NICStatus
	done chan struct{}
	seen func(ctx context.Context, nic int) (netip.Addr, error)

	agent agent.Agent // nil: one that never answers
}

func (f fakeSubject) Agent() agent.Agent {
	if f.agent != nil {
		return f.agent
	}
	return absent{}
}

// absent is an agent that never answers.
type absent struct{ agent.Agent }

func (absent) Ready(ctx context.Context) error {
	<-ctx.Done()
	return context.Cause(ctx)
}

// present is an agent that does.
type present struct{ agent.Agent }

func (present) Ready(context.Context) error { return nil }

func (f fakeSubject) Done() <-chan struct{} { return f.done }
func (f fakeSubject) NICs() []vm.NICStatus  { return f.nics }
func (f fakeSubject) Console() *vm.Console  { panic("not asked for") }
func (f fakeSubject) AwaitAddress(ctx context.Context, nic int) (netip.Addr, error) {
	return f.seen(ctx, nic)
}

func never(ctx context.Context, _ int) (netip.Addr, error) {
	<-ctx.Done()
	return netip.Addr{}, context.Cause(ctx)
}

// Whatever is missing is said, and of which kind it is.
func TestAwait(t *testing.T) {
	over, cancel := context.WithCancel(t.Context())
	cancel()
	ended := make(chan struct{})
	close(ended)
	lan := []vm.NICStatus{{Network: "lan", Link: "vmt1"}}
	addr := netip.MustParseAddr("127.0.0.1")
	for name, test := range map[string]struct {
		ctx  context.Context
		m    fakeSubject
		text string
		kind wire.Kind
		want string
	}{
		"started": {t.Context(), fakeSubject{}, "started", "", "started"},
		"an address": {t.Context(), fakeSubject{nics: lan, seen: func(context.Context, int) (netip.Addr, error) { return addr, nil }},
			"ip", "", "127.0.0.1"},
		"too late": {over, fakeSubject{nics: lan, seen: never}, "ip", wire.KindDeadline, "NIC 0 on network lan was not seen to use an address"},
		"ended":    {t.Context(), fakeSubject{nics: lan, seen: never, done: ended}, "ip", wire.KindUnmet, "it has ended, and before: NIC 0"},
		"impossible": {t.Context(), fakeSubject{nics: lan, seen: func(context.Context, int) (netip.Addr, error) { return netip.Addr{}, errors.New("why") }},
			"ip", wire.KindUnmet, "NIC 0: why"},
		"no NIC":    {t.Context(), fakeSubject{}, "ip", wire.KindUnmet, "it has no NIC"},
		"user mode": {t.Context(), fakeSubject{nics: []vm.NICStatus{{Network: "user"}}}, "port=22", wire.KindUnmet, "mode user"},
		"no answer": {over, fakeSubject{nics: lan}, "port=22", wire.KindDeadline, "port 22 does not answer: the guest's address is not known"},
		"no agent":  {over, fakeSubject{}, "agent", wire.KindDeadline, "the guest agent does not answer"},
		"an agent":  {t.Context(), fakeSubject{agent: present{}}, "agent", "", "the agent answers"},
		"nonsense":  {t.Context(), fakeSubject{}, "nonsense", wire.KindUsage, "want started"},
	} {
		t.Run(name, func(t *testing.T) {
			met, err := await(test.ctx, test.m, awaitArgs{For: test.text})
			if test.kind == "" {
				if err != nil || met != (Met{test.want}) {
					t.Errorf("got %v, %v", met, err)
				}
				return
			}
			refused, ok := errors.AsType[*wire.Refusal](err)
			if !ok || refused.Kind != test.kind || !strings.Contains(refused.Text, test.want) {
				t.Errorf("got %#v, want kind %s and %q", err, test.kind, test.want)
			}
		})
	}
}

// A port is found when it opens.
func TestAwaitPort(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	target := l.Addr().(*net.TCPAddr).AddrPort()
	m := fakeSubject{nics: []vm.NICStatus{{Network: "lan", Link: "vmt1"}, {Network: "lan", Link: "vmt2", Seen: target.Addr()}}}
	met, err := awaitPort(t.Context(), m, Condition{port: target.Port()})
	if err != nil || met.Text != target.String() {
		t.Errorf("got %v, %v", met, err)
	}
}
