package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// end is one end of a connection for tests.
type end struct {
	*Mux
	hellos chan Hello
	opened chan opened
	lost   chan struct{}
	conn   net.Conn
	done   chan error
}

type opened struct {
	stream  *Stream
	request Request
}

func (e *end) Hello(h Hello)               { e.hellos <- h }
func (e *end) Opened(s *Stream, r Request) { e.opened <- opened{s, r} }
func (e *end) Lost()                       { e.lost <- struct{}{} }

func newEnd(conn net.Conn) *end {
	e := &end{hellos: make(chan Hello, 16), opened: make(chan opened, 64), lost: make(chan struct{}, 16), conn: conn, done: make(chan error, 1)}
	e.Mux = NewMux(conn, e)
	return e
}

// connect makes two ends that have said hello.
func connect(t *testing.T) (host, guest *end) {
	t.Helper()
	a, b := net.Pipe()
	host, guest = newEnd(a), newEnd(b)
	for _, e := range []*end{host, guest} {
		go func() { e.done <- e.Run() }()
		if err := e.Mux.Hello(Hello{Version: Version, Session: "s"}, false); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		a.Close()
		b.Close()
		<-host.done
		<-guest.done
	})
	if h := <-guest.hellos; h.Session != "s" || h.Version != Version {
		t.Fatalf("hello %+v", h)
	}
	<-host.hellos
	return host, guest
}

// open makes a stream and returns both its ends.
func open(t *testing.T, host, guest *end) (ours, theirs *Stream) {
	t.Helper()
	ours, err := host.Open(Request{Exec: &Exec{Argv: []string{"x"}}})
	if err != nil {
		t.Fatal(err)
	}
	o := <-guest.opened
	if o.request.Exec == nil || o.request.Exec.Argv[0] != "x" {
		t.Fatalf("request %+v", o.request)
	}
	return ours, o.stream
}

func TestStreams(t *testing.T) {
	host, guest := connect(t)
	var all sync.WaitGroup
	for n := range 8 {
		ours, theirs := open(t, host, guest)
		text := strings.Repeat(fmt.Sprintf("stream %d\n", n), 4*window/9)
		// The guest sends back what it gets, and a result.
		all.Go(func() {
			out := theirs.Writer(Stdout)
			if _, err := io.Copy(out, theirs.Reader(Stdin)); err != nil {
				t.Error(err)
			}
			out.Close()
			theirs.Send(KindResult, Result{Code: n})
		})
		all.Go(func() {
			in := ours.Writer(Stdin)
			if _, err := io.WriteString(in, text); err != nil {
				t.Error(err)
			}
			in.Close()
		})
		all.Go(func() {
			got, err := io.ReadAll(ours.Reader(Stdout))
			if err != nil || string(got) != text {
				t.Errorf("stream %d: %v, %d of %d bytes", n, err, len(got), len(text))
			}
			var r Result
			if _, err := ours.Message(t.Context(), map[Kind]any{KindResult: &r}); err != nil || r.Code != n {
				t.Errorf("stream %d: result %+v, %v", n, r, err)
			}
			ours.Close()
		})
	}
	all.Wait()
}

// A channel that nobody reads holds up neither other channels nor streams, and
// its writer goes on when somebody does.
func TestSlowReader(t *testing.T) {
	host, guest := connect(t)
	slow, sender := open(t, host, guest)
	sent := make(chan error, 1)
	go func() {
		_, err := sender.Writer(Stdout).Write(make([]byte, 3*window))
		sent <- err
	}()
	if _, err := sender.Writer(Stderr).Write([]byte("err")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 3)
	if _, err := io.ReadFull(slow.Reader(Stderr), got); err != nil || string(got) != "err" {
		t.Errorf("%q, %v", got, err)
	}
	ours, theirs := open(t, host, guest)
	go theirs.Send(KindResult, Result{Code: 1})
	if _, err := ours.Message(t.Context(), map[Kind]any{KindResult: &Result{}}); err != nil {
		t.Error(err)
	}
	select {
	case err := <-sent:
		t.Errorf("more than a window was sent to nobody: %v", err)
	default:
	}
	if _, err := io.ReadFull(slow.Reader(Stdout), make([]byte, 3*window)); err != nil {
		t.Error(err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

func TestStopAndCancel(t *testing.T) {
	host, guest := connect(t)
	ours, theirs := open(t, host, guest)
	ours.Reader(Stdout).Close()
	if _, err := theirs.Writer(Stdout).Write(make([]byte, 2*window)); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("to who wants no more: %v", err)
	}
	if _, err := ours.Reader(Stdout).Read(make([]byte, 1)); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("read what was given up: %v", err)
	}
	ours.Cancel()
	if _, err := theirs.Message(t.Context(), nil); !errors.Is(err, ErrCancelled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := theirs.Reader(Stdin).Read(make([]byte, 1)); !errors.Is(err, ErrCancelled) {
		t.Errorf("read a cancelled stream: %v", err)
	}
}

// A result ends a stream, whatever the guest leaves out.
func TestResultEnds(t *testing.T) {
	host, guest := connect(t)
	ours, theirs := open(t, host, guest)
	theirs.Send(KindResult, Result{})
	if n, err := ours.Reader(Stdout).Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := ours.Writer(Stdin).Write(make([]byte, 1)); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("write: %v", err)
	}
}

// When the other side dies, all that waits for it is told.
func TestDeath(t *testing.T) {
	host, guest := connect(t)
	ours, _ := open(t, host, guest)
	errs := make(chan error, 3)
	go func() {
		_, err := ours.Reader(Stdout).Read(make([]byte, 1))
		errs <- err
	}()
	go func() {
		_, err := ours.Writer(Stdin).Write(make([]byte, 2*window))
		errs <- err
	}()
	go func() {
		_, err := ours.Message(t.Context(), nil)
		errs <- err
	}()
	guest.conn.Close()
	for range 3 {
		if err := <-errs; !errors.Is(err, ErrClosed) {
			t.Errorf("%v, want %v", err, ErrClosed)
		}
	}
	if _, err := host.Open(Request{}); !errors.Is(err, ErrClosed) {
		t.Errorf("open: %v", err)
	}
}

// A guest that was stopped in the middle of a frame, and whose host was replaced
// meanwhile, finds the new one.
func TestResynchronise(t *testing.T) {
	whole := appendFrame(nil, KindData, 7, []byte{Stdin}, make([]byte, maxData))
	for _, stale := range [][]byte{nil, whole[:1], whole[:headerLen-1], whole[:headerLen+100], whole[:len(whole)-1], []byte("garbage"), whole,
		{0xf5, 'v', 'm', byte(KindData), 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}} {
		var stream bytes.Buffer
		stream.Write(appendFrame(nil, KindHello, 0, []byte(`{"session":"old"}`)))
		stream.Write(stale)
		m := NewMux(&stream, nil)
		m.Hello(Hello{Session: "new"}, true)
		stream.Write(m.queue)
		d := newDecoder(&stream)
		last := ""
		for {
			f, err := d.next()
			if err != nil && !errors.Is(err, errLost) {
				break
			}
			if err == nil && f.Kind == KindHello {
				last = string(f.Payload)
			}
		}
		if !strings.Contains(last, "new") {
			t.Errorf("after %d stale bytes the last hello is %q", len(stale), last)
		}
	}
}

// What is no frame is told once, and streams of before are the handler's to end.
func TestLost(t *testing.T) {
	host, guest := connect(t)
	ours, _ := open(t, host, guest)
	go guest.conn.Write([]byte("hello? this is not what you speak"))
	<-host.lost
	host.Reset()
	if _, err := ours.Message(t.Context(), nil); !errors.Is(err, ErrReset) {
		t.Error(err)
	}
	guest.Mux.Hello(Hello{Session: "again"}, true)
	if h := <-host.hellos; h.Session != "again" {
		t.Errorf("%+v", h)
	}
}

// A side that breaks the protocol hurts its stream alone.
func TestHostile(t *testing.T) {
	for name, frames := range map[string][]byte{
		"more than the window":  bytes.Repeat(appendFrame(nil, KindData, 1, []byte{Stdout}, make([]byte, maxData)), window/maxData+1),
		"no such channel":       appendFrame(nil, KindData, 1, []byte{channels}),
		"no channel":            appendFrame(nil, KindEnd, 1),
		"credit over the limit": appendFrame(nil, KindCredit, 1, []byte{Stdin, 0xff, 0xff, 0xff, 0x7f}),
		"credit cut short":      appendFrame(nil, KindCredit, 1, []byte{Stdin, 1}),
		"data after the end":    append(appendFrame(nil, KindEnd, 1, []byte{Stdout}), appendFrame(nil, KindData, 1, []byte{Stdout, 'x'})...),
		"messages without end":  bytes.Repeat(appendFrame(nil, KindStarted, 1, []byte("{}")), maxMessages+1),
	} {
		t.Run(name, func(t *testing.T) {
			host, guest := connect(t)
			first, _ := open(t, host, guest)
			second, theirs := open(t, host, guest)
			if _, err := guest.conn.Write(frames); err != nil {
				t.Fatal(err)
			}
			theirs.Send(KindResult, Result{Code: 4})
			var r Result
			if _, err := second.Message(t.Context(), map[Kind]any{KindResult: &r}); err != nil || r.Code != 4 {
				t.Errorf("another stream: %+v, %v", r, err)
			}
			var failed error
			for failed == nil {
				_, failed = first.Message(t.Context(), map[Kind]any{KindStarted: &Started{}})
			}
			if errors.Is(failed, ErrReset) || errors.Is(failed, context.Canceled) {
				t.Errorf("the stream: %v", failed)
			}
		})
	}
}

func TestMessageDeadline(t *testing.T) {
	host, guest := connect(t)
	ours, _ := open(t, host, guest)
	late := errors.New("late")
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Millisecond, late)
	defer cancel()
	if _, err := ours.Message(ctx, nil); !errors.Is(err, late) {
		t.Error(err)
	}
}

func FuzzDecoder(f *testing.F) {
	hello := appendFrame(nil, KindHello, 0, []byte(`{"version":1}`))
	f.Add(append(hello, appendFrame(nil, KindData, 1, []byte{1, 'x'})...))
	f.Add(append([]byte("\xf5vm\x01\xf5"), hello...))
	f.Fuzz(func(t *testing.T, stream []byte) {
		conn := struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(stream), io.Discard}
		var m *Mux
		m = NewMux(conn, &fuzzed{func() { m.Open(Request{}) }})
		m.Open(Request{})
		if err := m.Run(); err == nil {
			t.Error("a stream has no end")
		}
	})
}

type fuzzed struct{ open func() }

func (z *fuzzed) Hello(Hello)             { z.open() }
func (z *fuzzed) Opened(*Stream, Request) {}
func (z *fuzzed) Lost()                   { z.open() }
