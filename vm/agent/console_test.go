package agent

import (
	"runtime"
	"testing"

	"github.com/vmrun/vmrun/images/guest/wire"
)

// toldSize is the size that the guest is told next, with the stream to answer on.
func (g *fakeGuest) toldSize(t *testing.T) (Size, *wire.Stream) {
	t.Helper()
	s, r := <-g.opened, <-g.asked
	if r.Console == nil {
		t.Fatalf("the guest is asked for %+v", r)
	}
	return *r.Console, s
}

// awaitIdle waits until all is written that a guest has read already.
func awaitIdle(a *VMRun) {
	for !a.mux.Idle() {
		runtime.Gosched()
	}
}

// A guest is told the console's size once it is there, each size that comes while
// it has not answered gives way to the next, and a guest that begins anew is told
// again. One that does not know the request is not asked twice.
func TestConsoleSize(t *testing.T) {
	a, g := newPair(t)
	small, wide, tall := Size{Rows: 24, Cols: 80}, Size{Rows: 24, Cols: 200}, Size{Rows: 60, Cols: 200}
	a.ResizeConsole(wide)
	a.ResizeConsole(small) // before there is a guest
	go g.serve()
	if err := a.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	size, s := g.toldSize(t)
	if size != small {
		t.Errorf("the guest is told %v, want %v", size, small)
	}
	a.ResizeConsole(wide)
	a.ResizeConsole(tall)
	s.Send(wire.KindResult, wire.Result{Error: "an unknown request"})
	if size, s = g.toldSize(t); size != tall {
		t.Errorf("the guest is told %v, want %v", size, tall)
	}
	s.Send(wire.KindResult, wire.Result{})
	a.ResizeConsole(tall) // as it is
	awaitIdle(a)
	g.Mux.Hello(wire.Hello{Version: wire.Version}, false) // it has started anew
	if size, s = g.toldSize(t); size != tall {
		t.Errorf("a new guest is told %v, want %v", size, tall)
	}
	s.Send(wire.KindResult, wire.Result{})
}

// A guest that does not answer is not told size after size, and then the last one.
func TestConsoleSizeOfHungGuest(t *testing.T) {
	a, g := newPair(t)
	a.patience = quick
	go g.serve()
	if err := a.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.deaf <- true // to the question whether it lives
	<-g.session
	for cols := range uint16(100) {
		a.ResizeConsole(Size{Rows: 24, Cols: cols + 1})
	}
	if size, _ := g.toldSize(t); size.Cols != 1 {
		t.Errorf("the guest is first told %v", size)
	}
	<-g.session // it was asked, and now would answer
	if len(g.opened) > 0 {
		t.Errorf("a guest that does not answer was told %d more", len(g.opened))
	}
	awaitIdle(a)
	a.ResizeConsole(Size{Rows: 24, Cols: 100})
	if size, _ := g.toldSize(t); size.Cols != 100 {
		t.Errorf("the guest is then told %v", size)
	}
}
